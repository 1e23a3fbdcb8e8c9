// Package bolt lets the engine and bbolt write one file in turn.
package bolt

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	bbolt "go.etcd.io/bbolt"

	"keelson.dev/compat/member"
)

const (
	files  = 12
	rounds = 8
)

// A listing as `exchange list` prints it.
func list(t *testing.T, db *bbolt.DB) string {
	t.Helper()
	var out strings.Builder
	var walk func(path string, get func([]byte) *bbolt.Bucket, each func(func(k, v []byte) error) error) error
	walk = func(path string, get func([]byte) *bbolt.Bucket, each func(func(k, v []byte) error) error) error {
		return each(func(k, v []byte) error {
			at := path + "/" + hex.EncodeToString(k)
			if inner := get(k); inner != nil {
				fmt.Fprintf(&out, "%s bucket %d\n", at, inner.Sequence())
				return walk(at, inner.Bucket, inner.ForEach)
			}
			fmt.Fprintf(&out, "%s %s\n", at, hex.EncodeToString(v))
			return nil
		})
	}
	err := db.View(func(tx *bbolt.Tx) error {
		return walk("", tx.Bucket, func(each func(k, v []byte) error) error {
			return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error { return each(name, nil) })
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Random work of bbolt's own.
func write(db *bbolt.DB, random *rand.Rand) error {
	return db.Update(func(tx *bbolt.Tx) error {
		name := func() []byte { return []byte(fmt.Sprintf("bucket%d", random.IntN(4))) }
		bucket, err := tx.CreateBucketIfNotExists(name())
		if err != nil {
			return err
		}
		if random.IntN(2) == 0 {
			if bucket, err = bucket.CreateBucketIfNotExists(name()); err != nil {
				return err
			}
		}
		for range random.IntN(300) {
			key := []byte(fmt.Sprintf("key%06d", random.IntN(4000)))
			if random.IntN(3) == 0 {
				err = bucket.Delete(key)
			} else {
				err = bucket.Put(key, make([]byte, random.IntN(300)))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func run(t *testing.T, program string, arguments ...string) string {
	t.Helper()
	output, err := exec.Command(program, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(arguments, " "), err, output)
	}
	return string(output)
}

func TestFilesAreWrittenInTurn(t *testing.T) {
	exchange, checker := member.Binary(t, "EXCHANGE"), member.Binary(t, "BBOLT")
	seed := rand.Uint64()
	if given := os.Getenv("SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range files {
		file := filepath.Join(t.TempDir(), "db")
		for range rounds {
			run(t, exchange, "write", file, fmt.Sprint(random.Uint64()))
			run(t, checker, "check", file)
			ours := run(t, exchange, "list", file)
			kind := bbolt.FreelistArrayType
			if random.IntN(2) == 0 {
				kind = bbolt.FreelistMapType
			}
			db, err := bbolt.Open(file, 0o600, &bbolt.Options{NoFreelistSync: random.IntN(2) == 0, FreelistType: kind})
			if err != nil {
				t.Fatal(err)
			}
			if theirs := list(t, db); theirs != ours {
				t.Fatalf("%s: bbolt reads something else", file)
			}
			for range random.IntN(3) {
				if err := write(db, random); err != nil {
					t.Fatal(err)
				}
			}
			theirs := list(t, db)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if ours := run(t, exchange, "list", file); ours != theirs {
				t.Fatalf("%s: we read something else than bbolt", file)
			}
		}
	}
}
