// Prints the orders in which sort.Sort leaves items of equal keys, as the checksums that
// crates/store/src/auth/sort/orders.tsv holds:
//
//	go run -C tests/compat ./orders > crates/store/src/auth/sort/orders.tsv
package main

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"sort"
)

type item struct{ key, id int }

type byKey []item

func (s byKey) Len() int           { return len(s) }
func (s byKey) Less(i, j int) bool { return s[i].key < s[j].key }
func (s byKey) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }

// adversary chooses the keys while it is asked, so that each pivot is a bad one (McIlroy, "A Killer Adversary
// for Quicksort", 1999): what it is asked, and in which order, decides the result.
type adversary struct {
	items            []item
	keys             []int
	solid, candidate int
}

func (s *adversary) Len() int      { return len(s.items) }
func (s *adversary) Swap(i, j int) { s.items[i], s.items[j] = s.items[j], s.items[i] }
func (s *adversary) Less(i, j int) bool {
	left, right, gas := s.items[i].id, s.items[j].id, len(s.items)
	if s.keys[left] == gas && s.keys[right] == gas {
		freeze := right
		if left == s.candidate {
			freeze = left
		}
		s.keys[freeze] = s.solid
		s.solid++
	}
	if s.keys[left] == gas {
		s.candidate = left
	} else if s.keys[right] == gas {
		s.candidate = right
	}
	return s.keys[left] < s.keys[right]
}

type random uint64

func (r *random) below(n int) int {
	*r = *r*6364136223846793005 + 1442695040888963407
	return int(uint64(*r) >> 33 % uint64(n))
}

func order(pattern string, length, keys int) []item {
	r := random(length*1_000_003 + keys)
	items := make([]item, 0, length)
	switch pattern {
	case "grown": // as etcd adds permissions: sorted after each
		for id := range length {
			items = append(items, item{r.below(keys), id})
			sort.Sort(byKey(items))
		}
	case "random":
		for id := range length {
			items = append(items, item{r.below(keys), id})
		}
	case "falling":
		for id := range length {
			items = append(items, item{(length - id) * keys / length, id})
		}
	case "nearly": // rising, but for three items
		for id := range length {
			items = append(items, item{id * keys / length, id})
		}
		for range 3 {
			items[r.below(length)].key = r.below(keys)
		}
	case "adversary":
		a := &adversary{keys: make([]int, length)}
		for id := range length {
			a.items = append(a.items, item{0, id})
			a.keys[id] = length
		}
		sort.Sort(a)
		return a.items
	}
	sort.Sort(byKey(items))
	return items
}

func main() {
	fmt.Println("# pattern\tlength\tkeys\tFNV-1a of the items in order: by tests/compat/orders")
	for _, pattern := range []string{"grown", "random", "falling", "nearly", "adversary"} {
		for _, length := range []int{1, 2, 12, 13, 14, 24, 49, 50, 51, 100, 257, 1000} {
			for _, keys := range []int{1, 2, 5, 30, 1_000_000} {
				sum := fnv.New64a()
				for _, item := range order(pattern, length, keys) {
					sum.Write(binary.LittleEndian.AppendUint32(nil, uint32(item.id)))
				}
				fmt.Printf("%s\t%d\t%d\t%016x\n", pattern, length, keys, sum.Sum64())
				if pattern == "adversary" {
					break
				}
			}
		}
	}
}
