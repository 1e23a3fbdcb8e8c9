//! Each work of the load generator, small, against a member: it does what it says it has done.

use std::time::Duration;

use keelson_bench::{Report, Spec, Work};
use keelson_client::Get;
use keelson_e2e::counted;
use keelson_harness::TestMember;

const TOTAL: u64 = 40;
const KEYS: u64 = 20;

/// Runs `work` against `member`, on two connections, of which the first is named twice.
async fn run(member: &TestMember, work: Work) -> Report {
    run_with(member, work, |_| {}).await
}

async fn run_with(member: &TestMember, work: Work, adjust: impl FnOnce(&mut Spec)) -> Report {
    let mut spec = Spec::new(work);
    spec.endpoints = vec![member.client_url(), member.client_url()];
    spec.connections = 2;
    spec.clients = 3;
    spec.total = Some(TOTAL);
    spec.keys = KEYS;
    spec.pids = vec![std::process::id(), std::process::id()];
    adjust(&mut spec);
    let report = tokio::task::spawn_blocking(move || keelson_bench::run(&spec));
    let report = report.await.unwrap().unwrap();
    assert_eq!(report.errors, 0, "{:?}", report.first_error);
    let server = report.server.as_ref().unwrap();
    let processes = server.processes.iter().map(|process| process.cpu_seconds);
    assert_eq!(server.processes.len(), 2);
    assert!((server.cpu_seconds - processes.sum::<f64>()).abs() < 1e-9);
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn each_work_does_as_many_operations_as_it_is_told_and_counts_what_they_met() {
    let member = TestMember::start().unwrap();
    let client = member.client().await.unwrap();
    let revision = || async { client.status().await.unwrap().header.unwrap().revision };

    let put = run(&member, Work::Put).await;
    assert_eq!((put.operations, put.items), (TOTAL, TOTAL));
    assert_eq!(revision().await, 1 + TOTAL as i64);

    let serializable = false;
    let get = run(&member, Work::Get { serializable }).await;
    assert_eq!((get.operations, get.items), (TOTAL, TOTAL));
    let before = revision().await;

    for (page, stream) in [(7, false), (0, false), (0, true)] {
        let list = Work::List {
            page,
            serializable,
            stream,
        };
        let list = run(&member, list).await;
        assert_eq!(list.operations, TOTAL);
        if page == 0 {
            assert_eq!(list.items, TOTAL * KEYS, "stream: {stream}");
        }
    }

    let count = run(&member, Work::Count { serializable }).await;
    assert_eq!((count.operations, count.items), (TOTAL, TOTAL * KEYS));

    let update = run(&member, Work::Update).await;
    assert_eq!(update.operations, TOTAL);
    assert!(0 < update.items && update.items <= TOTAL);

    let mixed = run(&member, Work::Mixed { writes: 50 }).await;
    assert_eq!((mixed.operations, mixed.items), (TOTAL, TOTAL));
    assert!(revision().await > before + update.items as i64);

    let watch = Work::Watch {
        watchers: 5,
        streams: 2,
    };
    let watch = run(&member, watch).await;
    assert_eq!((watch.operations, watch.items), (5 * TOTAL, TOTAL));

    let lag = |every| Work::Lag {
        watchers: 4,
        behind: 100,
        every,
    };
    let again = run(&member, lag(Duration::ZERO)).await;
    assert_eq!(again.operations, TOTAL);
    // Long enough for them to come hundreds of times.
    let slowly = |spec: &mut Spec| spec.rate = Some(2 * TOTAL);
    let once = run_with(&member, lag(Duration::from_secs(3600)), slowly).await;
    assert_eq!(once.operations, TOTAL);
    assert!(once.items <= 4, "they came more than once: {}", once.items);

    let keep_alive = run(&member, Work::KeepAlive).await;
    assert_eq!((keep_alive.operations, keep_alive.items), (TOTAL, TOTAL));
    let lease = run(&member, Work::Lease).await;
    assert_eq!((lease.operations, lease.items), (TOTAL, TOTAL));
    let leases = client.lease_list().await.unwrap().leases;
    assert_eq!(leases, [], "they are taken back");
    let left = client.get(Get::prefix("bench/")).await.unwrap().kvs;
    assert!(left.iter().all(|kv| kv.lease == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_idle_beside_a_load_is_there_before_it_begins() {
    let member = TestMember::start().unwrap();
    let put = run_with(&member, Work::Put, |spec| {
        spec.idle_watchers = 150;
        spec.idle_connections = 3;
    })
    .await;
    assert_eq!(put.operations, TOTAL);
    let watches = |counter| counted(&member.client_url(), counter, "Watch").unwrap();
    assert_eq!(watches("grpc_server_started_total"), 2);
    assert_eq!(watches("grpc_server_msg_received_total"), 150);
}
