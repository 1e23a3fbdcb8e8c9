//! A member in this process can be stopped, killed and started again.

use keelson_client::{Get, Put};
use keelson_harness::TestMember;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_stop_and_after_a_kill() {
    let mut member = TestMember::start().unwrap();
    let client = member.client().await.unwrap();
    let url = member.client_url();
    for (round, end) in [TestMember::stop, TestMember::kill].into_iter().enumerate() {
        for number in 0..100 {
            let key = format!("{round}/{number}");
            client.put(Put::new(key, "v")).await.unwrap();
        }
        end(&mut member);
        assert!(member.member().is_none());
        member.restart().unwrap();
        assert_eq!(member.client_url(), url);
        let kept = client.get(Get::all()).await.unwrap();
        assert_eq!(kept.count, 100 * (round as i64 + 1));
        assert_eq!(kept.header.unwrap().revision, kept.count + 1);
    }
}

#[tokio::test]
async fn two_members_run_beside_each_other_as_each_was_configured() {
    let small = TestMember::start_with(|config| config.max_txn_ops = 1).unwrap();
    let usual = TestMember::start().unwrap();
    let two = || {
        keelson_client::Txn::new()
            .then(Put::new("a", "1"))
            .then(Put::new("b", "2"))
    };
    assert!(small.client().await.unwrap().txn(two()).await.is_err());
    usual.client().await.unwrap().txn(two()).await.unwrap();
    assert_ne!(small.data_dir(), usual.data_dir());
}
