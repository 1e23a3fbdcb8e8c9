//! The world's side of clients: who asks whom, and what is remembered of it.

use keelson_node::{Reply, Ticket};
use keelson_store::{EventRange, Outcome};

use crate::client::{self, Begun, Client, Lease, PATIENCE, Pending, Want};
use crate::clock::{MILLI, Moment, SECOND, TRUE_RATE};
use crate::history::{Change, Operation, Request, Response};
use crate::safety;
use crate::world::{Event, Failed, World};

/// Requests of an operator get no answer that anybody waits for.
pub(crate) const OPERATOR: u32 = u32::MAX;
/// Leaders whose time is over may renew leases for a while; the next one extends them by as much.
const LEASE_SLACK: Moment = SECOND;

/// A client that speaks to one member only, once the faults have stopped.
fn home(world: &World, client: usize) -> Option<usize> {
    client.checked_sub(world.plan.clients)
}

impl World {
    /// A client looks for something to do.
    pub(crate) fn client(&mut self, client: usize) -> Result<(), Failed> {
        let home = home(self, client);
        let stops = self.healed && home.is_none();
        if self.clients[client].pending.is_some() || stops {
            return Ok(());
        }
        let place = match home {
            Some(place) => self.places[place].running.is_some().then_some(place),
            None => self.some_place(),
        };
        let Some(place) = place else {
            self.think(client);
            return Ok(());
        };
        self.renew(client);
        self.unique += 1;
        let want = match home {
            None => self.clients[client].next(&mut self.random, self.plan.keys, self.unique),
            Some(place) => self.probe(place),
        };
        self.begin(client, place, want);
        self.collect(place)
    }

    /// A write, then a read, to see whether a member serves.
    fn probe(&self, place: usize) -> Want {
        let key = format!("probe/{place}").into_bytes();
        let served = self.served.get(&place).copied().unwrap_or(0);
        Want::Recorded(if served.is_multiple_of(2) {
            Request::Write(crate::history::Write::Put {
                key,
                value: format!("p{}", self.unique).into_bytes(),
                lease: 0,
            })
        } else {
            Request::Read {
                key: None,
                serializable: false,
            }
        })
    }

    fn begin(&mut self, client: usize, place: usize, want: Want) {
        let Some(running) = &self.places[place].running else {
            return;
        };
        let asking = &mut self.clients[client];
        asking.generation += 1;
        let ticket = Ticket {
            thread: 0,
            slot: u32::try_from(client).expect("few clients"),
            generation: asking.generation,
        };
        let now = self.now;
        let begun = client::begin(&running.stepped, &want, ticket);
        self.trace.line(format_args!(
            "{now} client {client} asks m{place} {want:?}: {}",
            match &begun {
                Begun::Waiting => "waits",
                Begun::Refused => "refused",
                Begun::Answered(_) => "answered",
            }
        ));
        if let Want::Revoke { id } = want
            && let Some(lease) = self.leases.get_mut(&id)
            && !matches!(begun, Begun::Refused)
        {
            lease.revoked = true;
            asking.lease = None;
        }
        match begun {
            Begun::Refused => self.think(client),
            Begun::Answered(response) => {
                self.record(client, &want, now);
                self.answered(client, &want, Some(response));
                self.served(place, client);
                self.think(client);
            }
            Begun::Waiting => {
                self.record(client, &want, now);
                self.clients[client].pending = Some(Pending {
                    want,
                    place,
                    called: now,
                });
                let generation = ticket.generation;
                self.after(PATIENCE, Event::Late { client, generation });
            }
        }
    }

    fn served(&mut self, place: usize, client: usize) {
        if home(self, client).is_some() {
            *self.served.entry(place).or_default() += 1;
        }
    }

    /// Remembers a request before its answer.
    fn record(&mut self, client: usize, want: &Want, called: Moment) {
        let Want::Recorded(request) = want else {
            return;
        };
        self.operations.push(Some(Operation {
            client: client as u64,
            called,
            answer: None,
            request: request.clone(),
        }));
    }

    /// Remembers the answer to the last request of a client; without one it was refused, and has
    /// changed nothing.
    fn answered(&mut self, client: usize, want: &Want, response: Option<Response>) {
        if !matches!(want, Want::Recorded(_)) {
            return;
        }
        let of_client =
            |it: &&mut Option<Operation>| it.as_ref().is_some_and(|it| it.client == client as u64);
        let Some(operation) = self.operations.iter_mut().rev().find(of_client) else {
            return;
        };
        match (response, operation.as_mut()) {
            (Some(response), Some(answered)) => {
                let row = response.rows.first();
                if let Some(row) = row {
                    self.clients[client].seen = Some((row.key.clone(), row.mod_revision));
                }
                answered.answer = Some((self.now, response));
            }
            _ => *operation = None,
        }
    }

    /// A member has answered a ticket.
    pub(crate) fn answer(&mut self, place: usize, ticket: Ticket, reply: &Reply) {
        let Ok(number) = usize::try_from(ticket.slot) else {
            return;
        };
        let Some(asking) = self.clients.get_mut(number) else {
            return;
        };
        if asking.generation != ticket.generation {
            return;
        }
        let Some(pending) = asking.pending.take() else {
            return;
        };
        self.trace.line(format_args!(
            "{} client {number} gets {}",
            self.now,
            short(reply)
        ));
        if !client::is_open(reply) {
            self.closed(number, place, &pending, reply);
        }
        self.think(number);
    }

    /// It is known what became of a request.
    fn closed(&mut self, number: usize, place: usize, pending: &Pending, reply: &Reply) {
        match (reply, &pending.want) {
            (Reply::Readable, Want::Recorded(Request::Read { key, .. })) => {
                let running = self.places[place].running.as_ref();
                let response = running.map(|it| client::read(&it.stepped, key.as_ref()));
                self.answered(number, &pending.want, response);
                self.served(place, number);
            }
            (Reply::Applied(outcome), Want::Recorded(_)) => {
                let response = client::answer(outcome);
                let done = response.is_some();
                self.answered(number, &pending.want, response);
                if done {
                    self.served(place, number);
                }
            }
            (Reply::Applied(Outcome::LeaseGrant { id, ttl, .. }), Want::Grant { .. }) => {
                let lease = Lease {
                    id: id.0,
                    ttl: *ttl,
                    renewed: pending.called,
                    revoked: false,
                };
                self.clients[number].lease = Some(lease);
                self.leases.insert(id.0, lease);
            }
            _ => {}
        }
    }

    /// A client keeps its lease alive, or lets it go.
    fn renew(&mut self, client: usize) {
        let Some(lease) = self.clients[client].lease else {
            return;
        };
        if self.random.chance(100) {
            self.clients[client].lease = None;
            return;
        }
        let Some(leader) = self.leader() else { return };
        let place = &self.places[leader];
        // Who was asleep until now may not know that it leads no longer.
        if place.paused_until + SECOND > self.now && place.paused_until > 0 {
            return;
        }
        if let Some(running) = &place.running
            && client::renew(&running.stepped, lease.id)
            && let Some(known) = self.leases.get_mut(&lease.id)
        {
            known.renewed = self.now;
        }
    }

    /// A lease that was kept alive must not end before its time.
    pub(crate) fn look_at_leases(&mut self, batch: &EventRange) -> Result<(), Failed> {
        for event in batch.records.iter().filter(|it| it.record.tombstone) {
            let Change::Delete(key) = safety::change(event)? else {
                continue;
            };
            let Some(id) = key.strip_prefix(b"lease/") else {
                continue;
            };
            let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            // It is told once by each member: the first one counts.
            let Some(lease) = id.and_then(|id: i64| self.leases.remove(&id)) else {
                continue;
            };
            let ttl = u64::try_from(lease.ttl).unwrap_or(0) * SECOND;
            // By the fastest clock: the leader's may be that one.
            let most = (self.now + LEASE_SLACK).saturating_sub(lease.renewed) * self.fastest;
            if !lease.revoked && most < ttl * TRUE_RATE {
                return Err(format!(
                    "lease {} of {} s ended at {} us, and was renewed at {}",
                    lease.id, lease.ttl, self.now, lease.renewed
                ));
            }
        }
        Ok(())
    }

    /// A client waits no longer: nobody knows what became of its request.
    pub(crate) fn late(&mut self, client: usize, generation: u32) {
        let asking = &mut self.clients[client];
        if asking.generation == generation && asking.pending.take().is_some() {
            asking.generation += 1;
            self.think(client);
        }
    }

    /// Nobody at this member answers any more.
    pub(crate) fn give_up_on(&mut self, place: usize) {
        for client in 0..self.clients.len() {
            let asking = &mut self.clients[client];
            if asking.pending.take_if(|it| it.place == place).is_some() {
                asking.generation += 1;
                self.think(client);
            }
        }
    }

    fn think(&mut self, client: usize) {
        let most = if home(self, client).is_some() {
            20 * MILLI
        } else {
            self.plan.think
        };
        let delay = self.random.between(MILLI, most.max(MILLI));
        self.after(delay, Event::Client(client));
    }

    /// Lets a client of its own speak to a member from now on.
    pub(crate) fn add_probe(&mut self) {
        let client = self.clients.len();
        self.clients.push(Client::default());
        self.after(MILLI, Event::Client(client));
    }
}

fn short(reply: &Reply) -> String {
    match reply {
        Reply::Applied(Outcome::Put { revision, .. }) => format!("put {revision}"),
        Reply::Applied(Outcome::Refused(error)) => format!("refused by apply: {error}"),
        Reply::Applied(_) => "applied".to_owned(),
        Reply::Refused(error) => format!("refused: {error}"),
        Reply::Readable => "readable".to_owned(),
        _ => "an answer".to_owned(),
    }
}
