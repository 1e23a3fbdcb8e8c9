//! Orders that Go left: `orders.tsv` is written by `tests/compat/orders`, whose patterns are drawn again here.

use std::cell::RefCell;

use super::*;

#[derive(Clone, Copy)]
struct Item {
    key: usize,
    id: usize,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// Keys that are chosen while they are compared, so that each pivot is a bad one.
struct Adversary {
    keys: Vec<usize>,
    solid: usize,
    candidate: usize,
}

impl Adversary {
    fn less(&mut self, left: usize, right: usize) -> bool {
        let gas = self.keys.len();
        if self.keys[left] == gas && self.keys[right] == gas {
            let freeze = if left == self.candidate { left } else { right };
            self.keys[freeze] = self.solid;
            self.solid += 1;
        }
        if self.keys[left] == gas {
            self.candidate = left;
        } else if self.keys[right] == gas {
            self.candidate = right;
        }
        self.keys[left] < self.keys[right]
    }
}

fn order(pattern: &str, length: usize, keys: usize) -> Vec<Item> {
    let mut random = Random((length * 1_000_003 + keys) as u64);
    let of = |key: &dyn Fn(usize) -> usize| -> Vec<Item> {
        let item = |id| Item { key: key(id), id };
        (0..length).map(item).collect()
    };
    let mut items = match pattern {
        "grown" => {
            let mut items = Vec::new();
            for id in 0..length {
                let key = random.below(keys);
                items.push(Item { key, id });
                sort_as_go(&mut items, |item| &item.key);
            }
            items
        }
        "random" => {
            let random = RefCell::new(random);
            of(&|_| random.borrow_mut().below(keys))
        }
        "falling" => of(&|id| (length - id) * keys / length),
        "nearly" => {
            let mut items = of(&|id| id * keys / length);
            for _ in 0..3 {
                let at = random.below(length);
                items[at].key = random.below(keys);
            }
            items
        }
        "adversary" => {
            let mut items = of(&|_| 0);
            let adversary = RefCell::new(Adversary {
                keys: vec![length; length],
                solid: 0,
                candidate: 0,
            });
            let less = |left: &Item, right: &Item| adversary.borrow_mut().less(left.id, right.id);
            quicksort(&mut items, None, bit_length(length), &less);
            return items;
        }
        _ => panic!("no pattern is called {pattern}"),
    };
    sort_as_go(&mut items, |item| &item.key);
    items
}

fn checksum(items: &[Item]) -> u64 {
    let bytes = items
        .iter()
        .flat_map(|item| u32::try_from(item.id).unwrap().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn items_of_equal_keys_are_left_in_the_order_in_which_go_leaves_them() {
    let rows = include_str!("orders.tsv").lines().skip(1);
    let mut read = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('\t').collect();
        let [pattern, length, keys, sum] = cells[..] else {
            panic!("a row of {} cells: {row}", cells.len());
        };
        let items = order(pattern, length.parse().unwrap(), keys.parse().unwrap());
        assert_eq!(format!("{:016x}", checksum(&items)), sum, "{row}");
        read += 1;
    }
    assert!(read > 200, "only {read} rows");
}
