//! Simple tokens: told of in the order of the log.

use std::sync::{Arc, Mutex};

use keelson_node::{Env, Node, Watchers};
use keelson_proto::rpc::etcdserverpb::{
    AuthUserChangePasswordRequest, InternalAuthenticateRequest, InternalRaftRequest,
};
use keelson_store::{AuthOutcome, EventRange, Outcome};

use crate::rig::{Desk, PATIENCE, Rig, by_root, config};

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Watchers for Told {
    fn events(&self, _batch: EventRange) {}

    fn restored(&self, _revision: i64) {}

    fn token_assigned(&self, user: &str, token: &str) {
        let line = format!("{user} has {token}");
        self.0.lock().unwrap().push(line);
    }

    fn tokens_revoked(&self, user: Option<&str>) {
        let line = format!("{} has none", user.unwrap_or("everybody"));
        self.0.lock().unwrap().push(line);
    }
}

fn start(dir: &std::path::Path) -> (Rig, Arc<Told>) {
    let (desk, told) = (Arc::new(Desk::default()), Arc::new(Told::default()));
    let node = Node::start(config(dir), Env::real(), desk.clone(), told.clone()).unwrap();
    node.wait_ready(PATIENCE).unwrap();
    (Rig { node, desk }, told)
}

fn log_in(rig: &Rig, letters: &str) -> String {
    let request = InternalRaftRequest {
        authenticate: Some(InternalAuthenticateRequest {
            name: "root".to_owned(),
            simple_token: letters.to_owned(),
            ..InternalAuthenticateRequest::default()
        }),
        ..InternalRaftRequest::default()
    };
    match rig.run(request) {
        Outcome::Auth(AuthOutcome::Authenticated { token }) => token,
        other => panic!("no token: {other:?}"),
    }
}

#[test]
fn tokens_are_told_of_in_the_order_of_the_log_whenever_it_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, told) = start(dir.path());
    rig.turn_auth_on();
    let first = log_in(&rig, "first");
    rig.run(by_root(InternalRaftRequest {
        auth_user_change_password: Some(AuthUserChangePasswordRequest {
            name: "root".to_owned(),
            ..AuthUserChangePasswordRequest::default()
        }),
        ..InternalRaftRequest::default()
    }));
    let second = log_in(&rig, "second");
    let expected = [
        format!("root has {first}"),
        "root has none".to_owned(),
        format!("root has {second}"),
    ];
    assert_eq!(*told.0.lock().unwrap(), expected);
    // Without a last commit, all of it is in the log alone, and comes again. What is in the file is over.
    rig.node.kill();
    drop(rig);
    let (rig, told) = start(dir.path());
    assert_eq!(rig.get("key"), None, "everything is applied again");
    assert_eq!(*told.0.lock().unwrap(), expected);
    rig.node.stop();
    drop(rig);
    let (rig, told) = start(dir.path());
    assert!(told.0.lock().unwrap().is_empty());
    rig.node.stop();
}
