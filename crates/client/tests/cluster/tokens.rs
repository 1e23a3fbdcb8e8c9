//! Tokens that another endpoint does not know.

use std::sync::{Arc, Mutex};

use keelson_client::etcdserverpb as pb;
use keelson_client::{ApiError, Client, Code, Options, Put};

use crate::fake::{Call, Fake, urls};
use crate::{Count, soon};

/// A member whose tokens are its own.
#[derive(Clone)]
struct Member {
    id: usize,
    valid: Arc<Mutex<Vec<String>>>,
    puts: Count,
    tokens: Count,
}

impl Member {
    fn new(id: usize) -> Member {
        Member {
            id,
            valid: Arc::default(),
            puts: Count::default(),
            tokens: Count::default(),
        }
    }

    async fn start(&self) -> Fake {
        let member = self.clone();
        Fake::start(move |call| member.clone().take(call)).await
    }

    async fn take(self, call: Call) {
        match call.method() {
            "Authenticate" => {
                let token = format!("{}-{}", self.id, self.tokens.add());
                self.valid.lock().unwrap().push(token.clone());
                call.answer(&pb::AuthenticateResponse {
                    header: None,
                    token,
                });
            }
            "Put" => {
                let known = call.metadata("token").is_some_and(|token| {
                    let valid = self.valid.lock().unwrap();
                    valid.iter().any(|known| known == token)
                });
                if known {
                    self.puts.add();
                    call.answer(&pb::PutResponse::default());
                } else {
                    call.fail(Code::Unauthenticated, "etcdserver: invalid auth token");
                }
            }
            other => panic!("unexpected call of {other}"),
        }
    }
}

fn as_root() -> Options {
    let mut options = crate::patient();
    options.user = Some(("root".to_owned(), "secret".to_owned()));
    options
}

#[tokio::test]
async fn a_token_that_an_endpoint_does_not_know_is_fetched_anew() {
    let members = [Member::new(0), Member::new(1)];
    // Both know the same tokens, as members of one cluster do.
    let other = Member {
        valid: Arc::clone(&members[0].valid),
        ..members[1].clone()
    };
    let fakes = [members[0].start().await, other.start().await];
    let client = soon(Client::connect_with(&urls(&fakes), as_root()))
        .await
        .unwrap();
    for _ in 0..4 {
        soon(client.put(Put::new("a", "b"))).await.unwrap();
    }
    assert_eq!(members[0].tokens.get() + other.tokens.get(), 1);
    // Restarted members have forgotten all tokens.
    members[0].valid.lock().unwrap().clear();
    for _ in 0..4 {
        soon(client.put(Put::new("a", "b"))).await.unwrap();
    }
    assert_eq!(members[0].tokens.get() + other.tokens.get(), 2);
    assert_eq!(members[0].puts.get() + other.puts.get(), 8);
}

#[tokio::test]
async fn a_token_that_never_helps_is_given_up() {
    let fetched = Count::default();
    let count = fetched.clone();
    let fake = Fake::start(move |call| {
        let count = count.clone();
        async move {
            if call.method() == "Authenticate" {
                count.add();
                call.answer(&pb::AuthenticateResponse {
                    header: None,
                    token: "t".to_owned(),
                });
            } else {
                call.fail(Code::Unauthenticated, "etcdserver: invalid auth token");
            }
        }
    })
    .await;
    let client = soon(Client::connect_with(&fake.url(), as_root()))
        .await
        .unwrap();
    let error = soon(client.put(Put::new("a", "b"))).await.unwrap_err();
    assert_eq!(error.api(), Some(ApiError::InvalidAuthToken));
    assert!(fetched.get() <= 5, "{} tokens", fetched.get());
}
