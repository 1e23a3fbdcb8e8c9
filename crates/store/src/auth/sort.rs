//! The order that Go's `sort.Sort` leaves, which etcd's replicated state depends on.
//!
//! etcd sorts a role's permissions by their keys alone, with a sort that is not stable, and then looks at the
//! first permission of a key only: which one that is decides what a grant changes. The permissions are part of
//! what all members must hold alike, and of the bytes in their files. So a member must leave equal keys in the
//! order in which Go leaves them.
//!
//! That order is the one of a pattern-defeating quicksort (Peters, <https://arxiv.org/abs/2106.05123>) with the
//! thresholds, the choice of pivots and the pseudo-random swaps of Go 1.24 and later
//! (`src/sort/zsortinterface.go`; Go 1.19 to 1.23 draw other places in [`scatter`]). Every comparison and every
//! swap below is one of that sort, in its order.

use std::cmp::Ordering;

/// Slices up to this length are sorted by insertion.
const LONGEST_INSERTION: usize = 12;
/// From this length on a pivot is the median of three medians, and a few misplaced items are moved to their places.
const SHORTEST_LONG: usize = 50;

/// Sorts `items` by `key`, and leaves items of equal keys as Go's `sort.Sort` does.
///
/// O(n log n) comparisons at worst.
pub(super) fn sort_as_go<T, K: Ord + ?Sized>(items: &mut [T], key: impl Fn(&T) -> &K) {
    let less = |left: &T, right: &T| key(left).cmp(key(right)) == Ordering::Less;
    if items.len() > 1 {
        quicksort(items, None, bit_length(items.len()), &less);
    }
}

/// Sorts `items`, all of which are at least `before`, the item that precedes them in the whole slice.
///
/// `patience` is how many unbalanced partitions there may still be before it changes to a heap sort.
fn quicksort<'a, T>(
    mut items: &'a mut [T],
    mut before: Option<&'a T>,
    mut patience: u32,
    less: &impl Fn(&T, &T) -> bool,
) {
    let mut balanced = true;
    let mut partitioned = true;
    loop {
        let length = items.len();
        if length <= LONGEST_INSERTION {
            return insertion_sort(items, less);
        }
        if patience == 0 {
            return heap_sort(items, less);
        }
        if !balanced {
            scatter(items);
            patience -= 1;
        }
        let (mut pivot, pattern) = choose_pivot(items, less);
        if pattern == Pattern::Decreasing {
            items.reverse();
            pivot = length - 1 - pivot;
        }
        let sorted_so_far = balanced && partitioned && pattern != Pattern::Unknown;
        if sorted_so_far && finish_by_shifting(items, less) {
            return;
        }
        if before.is_some_and(|before| !less(before, &items[pivot])) {
            // The pivot is the smallest there is: what equals it is in its place once it is in front.
            let equal = partition_equal(items, pivot, less);
            let (placed, rest) = items.split_at_mut(equal);
            before = placed.last();
            items = rest;
            continue;
        }
        let (middle, was_partitioned) = partition(items, pivot, less);
        partitioned = was_partitioned;
        // The right side counts with the pivot here.
        let (left_length, right_length) = (middle, length - middle);
        balanced = left_length.min(right_length) >= length / 8;
        let (left, right) = items.split_at_mut(middle);
        let (pivot, right) = right
            .split_first_mut()
            .expect("a partition ends on the place of its pivot, which is in the slice");
        if left_length < right_length {
            quicksort(left, before, patience, less);
            items = right;
            before = Some(pivot);
        } else {
            quicksort(right, Some(pivot), patience, less);
            items = left;
        }
    }
}

fn insertion_sort<T>(items: &mut [T], less: &impl Fn(&T, &T) -> bool) {
    for end in 1..items.len() {
        shift_left(items, end, less);
    }
}

/// Moves the item at `place` to the left, past all that are greater.
fn shift_left<T>(items: &mut [T], place: usize, less: &impl Fn(&T, &T) -> bool) {
    for at in (1..=place).rev() {
        if !less(&items[at], &items[at - 1]) {
            break;
        }
        items.swap(at, at - 1);
    }
}

fn heap_sort<T>(items: &mut [T], less: &impl Fn(&T, &T) -> bool) {
    for root in (0..=(items.len() - 1) / 2).rev() {
        sift_down(items, root, less);
    }
    for last in (0..items.len()).rev() {
        items.swap(0, last);
        sift_down(&mut items[..last], 0, less);
    }
}

/// Restores the heap (the greatest item in front) below `root`.
fn sift_down<T>(heap: &mut [T], mut root: usize, less: &impl Fn(&T, &T) -> bool) {
    loop {
        let mut child = 2 * root + 1;
        if child >= heap.len() {
            return;
        }
        if child + 1 < heap.len() && less(&heap[child], &heap[child + 1]) {
            child += 1;
        }
        if !less(&heap[root], &heap[child]) {
            return;
        }
        heap.swap(root, child);
        root = child;
    }
}

/// Brings the pivot to a place with smaller items before it and the others after it.
///
/// The place, and whether the slice was parted already.
fn partition<T>(items: &mut [T], pivot: usize, less: &impl Fn(&T, &T) -> bool) -> (usize, bool) {
    items.swap(0, pivot);
    let (mut low, mut high) = (1, items.len() - 1);
    let mut partitioned = true;
    loop {
        while low <= high && less(&items[low], &items[0]) {
            low += 1;
        }
        while low <= high && !less(&items[high], &items[0]) {
            high -= 1;
        }
        if low > high {
            break;
        }
        items.swap(low, high);
        low += 1;
        high -= 1;
        partitioned = false;
    }
    items.swap(0, high);
    (high, partitioned)
}

/// Brings what equals the pivot, which is the smallest item, to the front; how many they are.
fn partition_equal<T>(items: &mut [T], pivot: usize, less: &impl Fn(&T, &T) -> bool) -> usize {
    items.swap(0, pivot);
    let (mut low, mut high) = (1, items.len() - 1);
    loop {
        while low <= high && !less(&items[0], &items[low]) {
            low += 1;
        }
        while low <= high && less(&items[0], &items[high]) {
            high -= 1;
        }
        if low > high {
            return low;
        }
        items.swap(low, high);
        low += 1;
        high -= 1;
    }
}

/// Sorts a slice that is nearly sorted by moving a few items; whether it is sorted now.
fn finish_by_shifting<T>(items: &mut [T], less: &impl Fn(&T, &T) -> bool) -> bool {
    const MOST_MOVES: usize = 5;
    let mut at = 1;
    for _ in 0..MOST_MOVES {
        while at < items.len() && !less(&items[at], &items[at - 1]) {
            at += 1;
        }
        if at == items.len() {
            return true;
        }
        if items.len() < SHORTEST_LONG {
            return false;
        }
        items.swap(at, at - 1);
        if at >= 2 {
            shift_left(items, at - 1, less);
        }
        for right in at + 1..items.len() {
            if !less(&items[right], &items[right - 1]) {
                break;
            }
            items.swap(right, right - 1);
        }
    }
    false
}

/// Swaps three items of the middle with pseudo-random ones, to break the pattern that made a partition unbalanced.
fn scatter<T>(items: &mut [T]) {
    let length = items.len();
    let mask = (1 << bit_length(length)) - 1;
    let mut random = length as u64;
    let middle = length / 4 * 2;
    for place in middle - 1..=middle + 1 {
        // Xorshift (Marsaglia, Journal of Statistical Software 8/14), seeded by the length.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // The mask is at most one bit longer than the length, so this is a place after one subtraction.
        let mut other = random as usize & mask;
        if other >= length {
            other -= length;
        }
        items.swap(place, other);
    }
}

/// What the choice of a pivot saw of the order of a slice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Increasing,
    Decreasing,
    Unknown,
}

/// The place of the median of three items, or of three medians, and the pattern that their comparisons suggest.
fn choose_pivot<T>(items: &[T], less: &impl Fn(&T, &T) -> bool) -> (usize, Pattern) {
    /// As many as four medians of three can swap: all that were looked at are in decreasing order.
    const MOST_SWAPS: u32 = 4 * 3;
    let quarter = items.len() / 4;
    let mut swaps = 0;
    let mut places = [quarter, quarter * 2, quarter * 3];
    if items.len() >= SHORTEST_LONG {
        places = places.map(|at| median(items, [at - 1, at, at + 1], &mut swaps, less));
    }
    let pivot = median(items, places, &mut swaps, less);
    let pattern = match swaps {
        0 => Pattern::Increasing,
        MOST_SWAPS => Pattern::Decreasing,
        _ => Pattern::Unknown,
    };
    (pivot, pattern)
}

/// Which of three places holds the median; adds to `swaps` how often two of them were in the wrong order.
fn median<T>(
    items: &[T],
    [mut first, mut second, mut third]: [usize; 3],
    swaps: &mut u32,
    less: &impl Fn(&T, &T) -> bool,
) -> usize {
    let mut order = |left: &mut usize, right: &mut usize| {
        if less(&items[*right], &items[*left]) {
            *swaps += 1;
            std::mem::swap(left, right);
        }
    };
    order(&mut first, &mut second);
    order(&mut second, &mut third);
    order(&mut first, &mut second);
    second
}

/// How many bits a length has.
fn bit_length(length: usize) -> u32 {
    usize::BITS - length.leading_zeros()
}

#[cfg(test)]
mod tests;
