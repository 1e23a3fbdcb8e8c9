use super::*;

fn list(kind: FreelistKind, ids: &[u64]) -> Freelist {
    let ids: Vec<PageId> = ids.iter().copied().map(PageId).collect();
    Freelist::new(kind, &ids)
}

fn ids(list: &Freelist) -> Vec<u64> {
    let mut ids = Vec::new();
    list.free.for_each(|id| ids.push(id.0));
    ids
}

const KINDS: [FreelistKind; 2] = [FreelistKind::Array, FreelistKind::Map];

#[test]
fn runs_are_found_and_taken_out() {
    for kind in KINDS {
        let mut list = list(kind, &[3, 4, 5, 6, 7, 9, 12, 13, 18]);
        assert_eq!(list.allocate(TxId(1), 3), Some(PageId(3)), "{kind:?}");
        assert_eq!(list.allocate(TxId(1), 3), None);
        assert_eq!(list.allocate(TxId(1), 2), Some(PageId(6)));
        assert_eq!(list.allocate(TxId(1), 2), Some(PageId(12)));
        assert_eq!(list.allocate(TxId(1), 1), Some(PageId(9)));
        assert_eq!(list.allocate(TxId(1), 1), Some(PageId(18)));
        assert_eq!(list.allocate(TxId(1), 1), None);
        list.rollback();
        assert_eq!(ids(&list), [3, 4, 5, 6, 7, 9, 12, 13, 18]);
    }
}

#[test]
fn a_page_that_a_reader_reaches_stays_pending() {
    for kind in KINDS {
        let mut list = list(kind, &[]);
        // Page 10 is older than the open; page 20 is made by 5 and freed by 7.
        list.note(TxId(5), PageId(20));
        list.commit();
        list.free(TxId(7), PageId(10), 0).unwrap();
        list.free(TxId(7), PageId(20), 1).unwrap();
        list.commit();
        list.release(&[TxId(4)], TxId(7));
        assert_eq!(ids(&list), [20, 21], "reader 4 is older than page 20");
        list.release(&[], TxId(7));
        assert_eq!(ids(&list), [10, 20, 21]);
    }
}

#[test]
fn a_reader_of_the_freeing_commit_itself_does_not_hold_the_page() {
    let mut list = list(FreelistKind::Map, &[]);
    list.free(TxId(7), PageId(10), 0).unwrap();
    list.release(&[TxId(7)], TxId(7));
    assert_eq!(ids(&list), [10]);
}

#[test]
fn a_page_freed_twice_is_damage() {
    for kind in KINDS {
        let mut list = list(kind, &[5]);
        assert!(list.free(TxId(1), PageId(4), 1).is_err());
        list.free(TxId(1), PageId(6), 1).unwrap();
        assert!(list.free(TxId(1), PageId(7), 0).is_err());
        assert!(list.free(TxId(1), PageId(1), 0).is_err());
    }
}

#[test]
fn spans_that_touch_become_one() {
    let mut list = list(FreelistKind::Map, &[4, 8]);
    list.free
        .insert(&[PageId(5), PageId(6), PageId(7), PageId(9)]);
    assert_eq!(list.allocate(TxId(1), 6), Some(PageId(4)));
}
