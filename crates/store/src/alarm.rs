//! Active alarms.

use std::collections::BTreeSet;

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction,
};
use prost::Message as _;

use crate::row::{RowChange, RowError, bucket};

/// The alarms that are on: replicated, changed by entries alone.
///
/// Kinds are numbers here: one that this version has no name for is kept and listed like any other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    /// (kind, member).
    active: BTreeSet<(i32, u64)>,
}

impl Alarms {
    /// The alarms from the rows of the bucket `alarm`: their keys are the alarms.
    ///
    /// # Errors
    ///
    /// [`RowError`] where a key is no `AlarmMember`.
    pub fn restore<'a>(keys: impl IntoIterator<Item = &'a [u8]>) -> Result<Alarms, RowError> {
        let mut alarms = Alarms::default();
        for key in keys {
            let AlarmMember { member_id, alarm } = AlarmMember::decode(key).map_err(|error| {
                RowError::new(bucket::ALARM, key, "an AlarmMember as key", error)
            })?;
            alarms.active.insert((alarm, member_id));
        }
        Ok(alarms)
    }

    /// Carries out a request and answers the alarms that it is about: those listed, the one that is
    /// on (also if it was), or the one that has been switched off.
    ///
    /// # Errors
    ///
    /// [`ApiError::UnknownMethod`] for an action without a name: nothing happens. (etcd's serving
    /// member crashes on it.) Handlers ask [`check_action`] first, so that it is not proposed.
    pub fn apply(
        &mut self,
        request: &AlarmRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<Vec<AlarmMember>, ApiError> {
        let AlarmRequest {
            action,
            member_id,
            alarm,
        } = *request;
        let one = (alarm, member_id);
        Ok(match action_of(action)? {
            AlarmAction::Get => self.get(alarm),
            AlarmAction::Activate if alarm == i32::from(AlarmType::None) => Vec::new(),
            AlarmAction::Activate => {
                if self.active.insert(one) {
                    rows.push(RowChange::put(
                        bucket::ALARM,
                        member(one).encode_to_vec(),
                        [],
                    ));
                }
                vec![member(one)]
            }
            AlarmAction::Deactivate if self.active.remove(&one) => {
                let key = member(one).encode_to_vec();
                rows.push(RowChange::delete(bucket::ALARM, key));
                vec![member(one)]
            }
            AlarmAction::Deactivate => Vec::new(),
        })
    }

    /// The alarms of a kind, or all of them for [`AlarmType::None`], by kind and member.
    #[must_use]
    pub fn get(&self, kind: i32) -> Vec<AlarmMember> {
        self.active
            .iter()
            .filter(|(alarm, _)| kind == i32::from(AlarmType::None) || *alarm == kind)
            .map(|one| member(*one))
            .collect()
    }

    /// Whether any member has this alarm on.
    #[must_use]
    pub fn is_active(&self, kind: AlarmType) -> bool {
        let kind = i32::from(kind);
        self.active
            .range((kind, u64::MIN)..=(kind, u64::MAX))
            .next()
            .is_some()
    }
}

/// Whether an action has a name.
///
/// # Errors
///
/// [`ApiError::UnknownMethod`], as for unknown actions of the downgrade request.
pub fn check_action(request: &AlarmRequest) -> Result<(), ApiError> {
    action_of(request.action).map(|_| ())
}

fn action_of(action: i32) -> Result<AlarmAction, ApiError> {
    AlarmAction::try_from(action).map_err(|_| ApiError::UnknownMethod)
}

fn member((alarm, member_id): (i32, u64)) -> AlarmMember {
    AlarmMember { member_id, alarm }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: i32 = 0;
    const ACTIVATE: i32 = 1;
    const DEACTIVATE: i32 = 2;
    const NOSPACE: i32 = 1;
    const CORRUPT: i32 = 2;

    fn ask(alarms: &mut Alarms, action: i32, id: u64, alarm: i32) -> (Vec<(u64, i32)>, usize) {
        let request = AlarmRequest {
            action,
            member_id: id,
            alarm,
        };
        let mut rows = Vec::new();
        let list = alarms.apply(&request, &mut rows).unwrap();
        let list = list.iter().map(|one| (one.member_id, one.alarm)).collect();
        (list, rows.len())
    }

    #[test]
    fn an_alarm_is_on_from_its_activation_to_its_deactivation() {
        let mut alarms = Alarms::default();
        assert_eq!(ask(&mut alarms, ACTIVATE, 7, NOSPACE), (vec![(7, 1)], 1));
        assert_eq!(ask(&mut alarms, ACTIVATE, 7, NOSPACE), (vec![(7, 1)], 0));
        assert!(alarms.is_active(AlarmType::Nospace));
        assert!(!alarms.is_active(AlarmType::Corrupt));
        assert_eq!(ask(&mut alarms, DEACTIVATE, 8, NOSPACE), (vec![], 0));
        assert_eq!(ask(&mut alarms, DEACTIVATE, 7, NOSPACE), (vec![(7, 1)], 1));
        assert_eq!(ask(&mut alarms, DEACTIVATE, 7, NOSPACE), (vec![], 0));
        assert_eq!(alarms, Alarms::default());
    }

    #[test]
    fn no_kind_lists_all_and_switches_nothing() {
        let mut alarms = Alarms::default();
        ask(&mut alarms, ACTIVATE, 2, NOSPACE);
        ask(&mut alarms, ACTIVATE, 1, CORRUPT);
        let all = vec![(2, 1), (1, 2)];
        assert_eq!(ask(&mut alarms, GET, 99, 0), (all.clone(), 0));
        assert_eq!(ask(&mut alarms, GET, 99, CORRUPT), (vec![(1, 2)], 0));
        assert_eq!(ask(&mut alarms, GET, 0, 9), (vec![], 0));
        assert_eq!(ask(&mut alarms, ACTIVATE, 2, 0), (vec![], 0));
        assert_eq!(ask(&mut alarms, DEACTIVATE, 2, 0), (vec![], 0));
        assert_eq!(ask(&mut alarms, GET, 0, 0), (all, 0));
    }

    #[test]
    fn an_action_without_a_name_is_refused() {
        let request = AlarmRequest {
            action: 9,
            ..AlarmRequest::default()
        };
        assert_eq!(check_action(&request), Err(ApiError::UnknownMethod));
        let mut rows = Vec::new();
        let refused = Alarms::default().apply(&request, &mut rows);
        assert_eq!((refused, rows.len()), (Err(ApiError::UnknownMethod), 0));
    }

    #[test]
    fn rows_are_those_that_etcd_writes() {
        // Recorded with etcd 3.7: the member ddd67b312462fd7b is out of space.
        let recorded = [
            0x08, 0xfb, 0xfa, 0x8b, 0xa3, 0x92, 0xe6, 0x9e, 0xeb, 0xdd, 0x01, 0x10, 0x01,
        ];
        let mut rows = Vec::new();
        let mut alarms = Alarms::default();
        let request = AlarmRequest {
            action: ACTIVATE,
            member_id: 0xddd6_7b31_2462_fd7b,
            alarm: NOSPACE,
        };
        alarms.apply(&request, &mut rows).unwrap();
        assert_eq!(rows, [RowChange::put("alarm", recorded, [])]);
        assert_eq!(Alarms::restore([&recorded[..]]).unwrap(), alarms);
        assert!(Alarms::restore([&[0x08][..]]).is_err());
    }
}
