//! A member whose data is not that of the others is found: at its start, by the leader now and then, and
//! by the hashes of compactions.

use std::path::Path;
use std::time::Duration;

use keelson_bolt::{Db, Options};
use keelson_client::etcdserverpb::{AlarmMember, AlarmType};
use keelson_client::{Client, Get, Put};
use keelson_harness::{TestCluster, wait};
use keelson_server::config::Config;

/// The longest that anything may take, and how often it is looked whether it is there.
const PATIENCE: Duration = wait::PATIENCE;
const PAUSE: Duration = Duration::from_millis(20);

const VALUE: &[u8] = b"as it was written";

/// Changes one value in the database of a member that does not run, as a bad disk would.
fn alter(data_dir: &Path) {
    let path = data_dir.join("member/snap/db");
    let db = Db::open(&path, Options::default()).unwrap();
    let mut write = db.begin_write().unwrap();
    let mut keys = write.bucket_mut(b"key").unwrap();
    let is_ours = |row: &[u8]| row.ends_with(VALUE);
    let mut cursor = keys.cursor();
    let mut at = cursor.first().unwrap();
    while at.is_some_and(|(_, row)| !row.is_some_and(is_ours)) {
        at = cursor.next().unwrap();
    }
    let (key, row) = at.expect("the value is there");
    let (key, mut row) = (key.to_vec(), row.unwrap().to_vec());
    drop(cursor);
    *row.last_mut().unwrap() ^= 1;
    keys.put(&key, &row).unwrap();
    write.commit().unwrap();
    db.close().unwrap();
}

/// Three members with one key, of which a follower has stopped and been altered; and which one.
async fn one_altered(adjust: impl Fn(&mut Config) + Send + Sync + 'static) -> (TestCluster, usize) {
    let mut cluster = TestCluster::start_with(3, move |config| {
        // Nobody is elected because the machine has other work.
        config.heartbeat_ms = 500;
        config.election_ms = 5000;
        adjust(config);
    })
    .unwrap();
    let client = cluster.client().await.unwrap();
    client.put(Put::new("key", VALUE)).await.unwrap();
    let leader = cluster.wait_for_leader().unwrap();
    let altered = (leader + 1) % 3;
    // It has the key in its file then.
    let back = cluster.client_of(altered).await.unwrap();
    back.get(Get::key("key")).await.unwrap();
    cluster.stop(altered);
    alter(cluster.data_dir(altered));
    (cluster, altered)
}

/// The alarms, once there are some.
async fn alarms(client: &Client) -> Vec<AlarmMember> {
    let raised = async {
        loop {
            if let Ok(answer) = client.alarms().await
                && !answer.alarms.is_empty()
            {
                return answer.alarms;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, raised)
        .await
        .expect("an alarm is raised in time")
}

fn corrupt(cluster: &TestCluster, number: usize) -> Vec<AlarmMember> {
    vec![AlarmMember {
        member_id: cluster.member(number).unwrap().node().member_id().0,
        alarm: AlarmType::Corrupt.into(),
    }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_other_data_refuses_to_start_if_it_is_to_look() {
    let (mut cluster, altered) = one_altered(|config| {
        config
            .feature_gates
            .set("InitialCorruptCheck=true")
            .unwrap();
    })
    .await;
    let healthy = (0..3).find(|number| *number != altered).unwrap();
    // One whose data is the same starts.
    cluster.stop(healthy);
    cluster.restart(healthy).unwrap();
    let refused = format!("{:#}", cluster.restart(altered).unwrap_err());
    assert!(
        refused.ends_with("found data inconsistency with peers"),
        "{refused}"
    );
    // It has lost its quorum meanwhile, and elects.
    let client = cluster.client().await.unwrap();
    let written = async {
        while client.put(Put::new("key", "goes on")).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, written)
        .await
        .expect("it is written in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_raises_the_alarm_for_a_member_with_other_data() {
    let (mut cluster, altered) = one_altered(|config| {
        config.corrupt_check_time = Duration::from_millis(200);
    })
    .await;
    cluster.restart(altered).unwrap();
    let client = cluster.client().await.unwrap();
    assert_eq!(alarms(&client).await, corrupt(&cluster, altered));
    let refused = client.put(Put::new("key", "value")).await.unwrap_err();
    assert!(refused.to_string().contains("corrupt cluster"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_of_a_compaction_name_the_member_that_differs_from_most() {
    let (mut cluster, altered) = one_altered(|config| {
        config.feature_gates.set("CompactHashCheck=true").unwrap();
        config.compact_hash_check_time = Duration::from_millis(200);
    })
    .await;
    let client = cluster.client().await.unwrap();
    client.compact(2, true).await.unwrap();
    // Of two hashes that differ no majority says which is wrong: so the others have theirs first.
    for healthy in (0..3).filter(|number| *number != altered) {
        let shared = cluster.member(healthy).unwrap().node().shared();
        wait::until(|| shared.compaction_hashes().pop()).unwrap();
    }
    cluster.restart(altered).unwrap();
    assert_eq!(alarms(&client).await, corrupt(&cluster, altered));
}
