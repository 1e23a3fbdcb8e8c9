// The works of crates/bolt/examples/measure.rs in bbolt.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	keySize   = 64
	valueSize = 512
	keys      = 400_000
	free      = 1_000_000
)

var bucketName = []byte("bench")

type meter struct {
	clock     time.Time
	processor int64
}

func processor() int64 {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func start() meter { return meter{time.Now(), processor()} }

func (m meter) report(name string, n int64) {
	fmt.Printf("%s\t%d\t%d\t%d\n", name, n, time.Since(m.clock).Nanoseconds()/n, (processor()-m.processor)/n)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func key(n uint64, random bool) []byte {
	if random {
		n *= 0x9E3779B97F4A7C15
	}
	key := make([]byte, keySize)
	for i := range key {
		key[i] = 'k'
	}
	binary.BigEndian.PutUint64(key, n)
	return key
}

var value = make([]byte, valueSize)

func puts(db *bolt.DB, from, to, each uint64, random bool) {
	for ; from < to; from += each {
		check(db.Update(func(tx *bolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists(bucketName)
			if err != nil {
				return err
			}
			for n := from; n < from+each; n++ {
				if err := bucket.Put(key(n, random), value); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

// As etcd and most users open it: the map, which the array loses to with many free pages.
func open(path string, noFreelistSync bool) *bolt.DB {
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: noFreelistSync, FreelistType: bolt.FreelistMapType})
	check(err)
	return db
}

func fresh(folder, name string) (string, *bolt.DB) {
	path := filepath.Join(folder, name+".db")
	os.Remove(path)
	return path, open(path, false)
}

func writes(folder string) {
	for _, order := range []string{"in order", "random"} {
		for _, w := range []struct{ each, n uint64 }{{1, 1_000}, {100, 100_000}, {10_000, 400_000}} {
			path, db := fresh(folder, "puts")
			m := start()
			puts(db, 0, w.n, w.each, order == "random")
			m.report(fmt.Sprintf("puts %s, %d a transaction", order, w.each), int64(w.n))
			check(db.Close())
			os.Remove(path)
		}
	}
}

func reads(folder string) {
	path, db := fresh(folder, "reads")
	puts(db, 0, keys, 10_000, true)
	var sink int
	check(db.View(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(bucketName)
		check(bucket.ForEach(func(k, v []byte) error { sink += len(v); return nil }))
		const n = 1_000_000
		m := start()
		for i := uint64(0); i < n; i++ {
			v := bucket.Get(key(i*7919%keys, true))
			if v == nil {
				return fmt.Errorf("a key is missing")
			}
			sink += len(v)
		}
		m.report("random gets", n)
		m = start()
		for range 5 {
			c := bucket.Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				sink += len(v)
			}
		}
		m.report("scan, a key", 5*keys)
		return nil
	}))
	m := start()
	for from := uint64(0); from < keys; from += 10_000 {
		check(db.Update(func(tx *bolt.Tx) error {
			bucket := tx.Bucket(bucketName)
			for n := from; n < from+10_000; n += 2 {
				if err := bucket.Delete(key(n, true)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	puts(db, keys, keys+keys/2, 10_000, true)
	m.report("delete half and refill, a key", keys)
	check(db.Close())
	for _, stored := range []bool{true, false} {
		db := open(path, !stored)
		check(db.Update(func(tx *bolt.Tx) error { return nil }))
		check(db.Close())
		m := start()
		db = open(path, !stored)
		tx, err := db.Begin(true)
		check(err)
		check(tx.Rollback())
		name := "open, list stored"
		if !stored {
			name = "open, list not stored"
		}
		m.report(name, 1)
		check(db.Close())
	}
	os.Remove(path)
}

// The files with free pages are made by the other program: it is named.
func commits(folder string) {
	for _, stored := range []bool{true, false} {
		name := "stored"
		if !stored {
			name = "bare"
		}
		path := filepath.Join(folder, "free-"+name+".db")
		db := open(path, !stored)
		puts(db, 0, 10, 1, false)
		const n = 100
		m := start()
		puts(db, 0, n, 1, false)
		what := "small commit, a million free pages, list stored"
		if !stored {
			what = "small commit, a million free pages, list not stored"
		}
		m.report(what, n)
		check(db.Close())
	}
}

func main() {
	if len(os.Args) < 2 {
		check(fmt.Errorf("usage: measure FOLDER [writes|reads|commits]"))
	}
	work := ""
	if len(os.Args) > 2 {
		work = os.Args[2]
	}
	if work == "" || work == "writes" {
		writes(os.Args[1])
	}
	if work == "" || work == "reads" {
		reads(os.Args[1])
	}
	if work == "" || work == "commits" {
		commits(os.Args[1])
	}
}
