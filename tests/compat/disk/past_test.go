package disk

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/compat/member"
)

// unpack makes a data directory of an archive.
func unpack(t *testing.T, archive string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	packed, err := os.Open(archive)
	check(err)
	defer packed.Close()
	plain, err := gzip.NewReader(packed)
	check(err)
	check(os.Mkdir(dir, 0o700))
	for files := tar.NewReader(plain); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		check(err)
		path := filepath.Join(dir, filepath.Clean("/"+header.Name))
		if header.FileInfo().IsDir() {
			check(os.MkdirAll(path, 0o700))
			continue
		}
		check(os.MkdirAll(filepath.Dir(path), 0o700))
		file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		check(err)
		_, err = io.Copy(file, files)
		check(err)
		check(file.Close())
	}
}

// A directory of etcd 3.5 says the same in etcd 3.6 and in ours, and then in etcd 3.7, which does not open it
// as 3.5 left it. It does not matter how ours ended.
func TestDirectoryOfEtcd35(t *testing.T) {
	etcd36 := program{"etcd 3.6", "ETCD36_BINARY"}
	for _, variant := range []struct {
		name   string
		client []func(*clientv3.Config)
	}{
		{"auth", []func(*clientv3.Config){member.As("root", "rootpw")}},
		{"learner", nil},
	} {
		archive := filepath.Join("testdata", "3.5", variant.name+".tar.gz")
		ask := func(p program, dir string, end func(*member.Member)) map[string]string {
			m := p.start(t, dir)
			c := m.Client(variant.client...)
			answers := Answers(t, c)
			_ = c.Close()
			end(m)
			Check(t, "after "+p.name, dir)
			return answers
		}
		want := ask(etcd36, unpack(t, archive), (*member.Member).Stop)
		for name, end := range map[string]func(*member.Member){
			"stopped": (*member.Member).Stop,
			"killed":  (*member.Member).Kill,
		} {
			t.Run(variant.name+" "+name, func(t *testing.T) {
				dir := unpack(t, archive)
				Same(t, "in ours", ask(ours, dir, end), want)
				Same(t, "in etcd 3.7", ask(etcd, dir, (*member.Member).Stop), want)
			})
		}
	}
}

// A member of etcd that has lost the majority goes on alone in ours, with all its data, and so does etcd on what
// ours leaves.
func TestForcedNewCluster(t *testing.T) {
	dir := t.TempDir()
	m := etcd.start(t, dir)
	c := users(t, m)
	if err := NewWork(5).Do(member.Context(t), c, 500); err != nil {
		t.Fatal(err)
	}
	want := Answers(t, c)
	// It never starts, so this is the last thing that the cluster agrees on.
	if _, err := c.MemberAdd(member.Context(t), []string{"http://127.0.0.1:12390"}); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	m.Stop()
	alone := func(p program, flags ...string) {
		t.Helper()
		m := p.start(t, dir, flags...)
		c := m.Client(member.As("root", "pw"))
		Same(t, "in "+p.name, Answers(t, c), want)
		list, err := c.MemberList(member.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Members) != 1 {
			t.Errorf("%d members in %s", len(list.Members), p.name)
		}
		if _, err := c.Put(member.Context(t), "key/1", p.name); err != nil {
			t.Fatal(err)
		}
		want = Answers(t, c)
		_ = c.Close()
		m.Stop()
		Check(t, "after "+p.name, dir)
	}
	alone(ours, "--force-new-cluster")
	alone(etcd)
	alone(ours)
}
