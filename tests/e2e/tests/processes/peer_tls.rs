//! Members that prove to one another who they are, and those that cannot.

use std::fs;
use std::net::Ipv4Addr;

use keelson_client::{Get, Put};
use keelson_e2e::{Authority, Launch, Names, ProcessCluster};

use crate::port::{Rig, exchange, room, unhurried, until};
use crate::server::tested;

const REJECTED: &str = "rejected connection on peer endpoint";

/// How many lines of a member's log say that it rejected a connection for a reason.
fn rejected(cluster: &ProcessCluster, number: usize, reason: &str) -> usize {
    let log = cluster.member(number).log();
    log.iter()
        .filter(|line| line.contains(REJECTED) && line.contains(reason))
        .count()
}

/// The first two serve; the third may not take part.
fn start_two_of(launches: [Launch; 3]) -> ProcessCluster {
    let mut cluster = ProcessCluster::prepared(launches.into(), &[]).unwrap();
    cluster.spawn().unwrap();
    for number in 0..2 {
        cluster.member_mut(number).wait_until_ready().unwrap();
    }
    cluster
}

async fn serves(cluster: &ProcessCluster, number: usize, key: &str) {
    let client = cluster.member(number).client().await.unwrap();
    client.put(Put::new(key.to_owned(), "value")).await.unwrap();
    let got = client.get(Get::key(key.to_owned())).await.unwrap();
    assert_eq!(got.count, 1);
}

/// A member that does not lead, by its number.
async fn follower(rig: &Rig) -> usize {
    for (number, id) in rig.ids.iter().enumerate() {
        let client = rig.cluster.member(number).client().await.unwrap();
        if format!("{:x}", client.status().await.unwrap().leader) != *id {
            return number;
        }
    }
    unreachable!("one member leads at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_certificates_of_one_authority_form_a_cluster() {
    let _room = room().await;
    let authority = Authority::new().unwrap();
    let launches = ["a", "b", "c"].map(|name| {
        let names = Names::local(name);
        authority.secure(unhurried(), name, names).unwrap()
    });
    let cluster = ProcessCluster::start(launches.into()).unwrap();
    let mut rig = Rig::of(cluster).await;
    // Without TLS nobody is answered.
    let answer = exchange(
        rig.cluster.member(0),
        b"GET /raft/probing HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n",
    );
    assert!(!answer.contains("HTTP/1.1 200"), "{answer:?}");
    let reason = "tls: first record does not look like a TLS handshake";
    until(reason, || rejected(&rig.cluster, 0, reason) == 1);
    rig.is_unharmed().await;
    // The connections are made again. Without a follower puts go on at once: there is no election, which
    // may take longer here than a client waits.
    let follower = follower(&rig).await;
    rig.cluster.member_mut(follower).kill().unwrap();
    rig.puts_go_on().await;
    rig.cluster.member_mut(follower).restart().unwrap();
    serves(&rig.cluster, follower, "back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_certificate_of_another_authority_stays_outside() {
    let _room = room().await;
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    let secure = |of: &Authority, name| of.secure(tested(), name, Names::local(name)).unwrap();
    let cluster = start_two_of([
        secure(&ours, "a"),
        secure(&ours, "b"),
        // It trusts ours, and shows what ours did not sign.
        secure(&theirs, "c").argument(format!(
            "--peer-trusted-ca-file={}",
            ours.certificate().display()
        )),
    ]);
    serves(&cluster, 0, "key").await;
    let reason = "x509: certificate signed by unknown authority";
    until(reason, || rejected(&cluster, 0, reason) > 0);
    let stranger = cluster.member(2);
    stranger.wait_for_log("remote error: tls: ").unwrap();
    assert!(
        !stranger
            .log()
            .iter()
            .any(|line| line.contains("ready to serve"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_common_name_is_told_that_its_certificate_is_bad() {
    let _room = room().await;
    let authority = Authority::new().unwrap();
    let named = |name, common: &'static str| {
        let launch = authority.secure(tested(), name, Names::local(common));
        let allowed = format!("--peer-cert-allowed-cn={common}");
        launch.unwrap().argument(allowed)
    };
    let cluster = start_two_of([
        named("a", "example.com"),
        named("b", "example.com"),
        named("c", "example2.com"),
    ]);
    serves(&cluster, 0, "key").await;
    let stranger = cluster.member(2);
    let told = "remote error: tls: bad certificate";
    stranger.wait_for_log(told).unwrap();
    until(told, || rejected(&cluster, 2, told) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_host_name_is_not_spoken_with() {
    let _room = room().await;
    let authority = Authority::new().unwrap();
    let named = |name, host: &'static str| {
        let names = Names {
            hosts: &["localhost"],
            ..Names::local("member")
        };
        let launch = authority.secure(tested(), name, names).unwrap();
        launch.argument(format!("--peer-cert-allowed-hostname={host}"))
    };
    let cluster = start_two_of([
        named("a", "localhost"),
        named("b", "localhost"),
        named("c", "example2.com"),
    ]);
    serves(&cluster, 1, "key").await;
    let reason = "client certificate authentication failed";
    until(reason, || rejected(&cluster, 2, reason) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_is_shown_without_a_restart() {
    let _room = room().await;
    let authority = Authority::new().unwrap();
    let elsewhere = Names {
        addresses: &[Ipv4Addr::new(10, 0, 0, 1)],
        ..Names::local("c")
    };
    let secure = |name, names| authority.secure(tested(), name, names).unwrap();
    let mut cluster = start_two_of([
        secure("a", Names::local("a")),
        secure("b", Names::local("b")),
        secure("c", elsewhere),
    ]);
    // It is refused where it dials, and where it is dialled.
    let reason = "x509: certificate is valid for 10.0.0.1, not 127.0.0.1";
    until(reason, || rejected(&cluster, 0, reason) > 0);
    authority.sign("c", Names::local("c")).unwrap();
    cluster.member_mut(2).wait_until_ready().unwrap();
    serves(&cluster, 2, "key").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_make_their_own_certificates_form_a_cluster_and_keep_them() {
    let _room = room().await;
    let own = || {
        tested()
            .peers_over_tls()
            .argument("--peer-auto-tls")
            .argument("--self-signed-cert-validity=2")
    };
    let mut cluster = ProcessCluster::start(vec![own(); 3]).unwrap();
    serves(&cluster, 0, "key").await;
    let files = |cluster: &ProcessCluster| {
        let dir = cluster.member(1).data_dir().join("fixtures/peer");
        ["cert.pem", "key.pem"].map(|name| fs::read(dir.join(name)).unwrap())
    };
    let before = files(&cluster);
    let log = cluster.member(1).log();
    assert!(
        log.iter()
            .any(|line| line.contains("automatically generate certificates"))
    );
    cluster.member_mut(1).stop().unwrap();
    cluster.member_mut(1).restart().unwrap();
    serves(&cluster, 1, "again").await;
    assert!(files(&cluster) == before, "it is the same certificate");
}
