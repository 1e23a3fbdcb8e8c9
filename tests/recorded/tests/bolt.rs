//! Files made by the real bbolt: sound ones open with exactly the recorded contents, damaged ones
//! give the recorded kind of error.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Read;
use std::path::PathBuf;

use keelson_bolt::surgery::RawFile;
use keelson_bolt::{
    Bucket, Cursor, Db, Error, FreelistKind, MemStorage, Options, ReadTx, Repair, Storage, check,
    compact,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The folder of recorded files. Without it there is nothing to show, so the tests fail.
fn folder() -> PathBuf {
    let data = std::env::var("KEELSON_DATA").expect("KEELSON_DATA names the recorded data");
    PathBuf::from(data).join("bolt")
}

/// Every recorded file whose name satisfies `want`: name, contents, description.
fn files(want: impl Fn(&str) -> bool) -> Vec<(String, Vec<u8>, Value)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(name) = file.strip_suffix(".db.json").filter(|name| want(name)) else {
            continue;
        };
        let json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let plain = folder().join(format!("{name}.db"));
        let contents = if plain.exists() {
            std::fs::read(plain).unwrap()
        } else {
            let packed = std::fs::read(folder().join(format!("{name}.db.gz"))).unwrap();
            let mut contents = Vec::new();
            flate2::read::GzDecoder::new(&packed[..])
                .read_to_end(&mut contents)
                .unwrap();
            contents
        };
        found.push((name.to_owned(), contents, json));
    }
    assert!(!found.is_empty(), "no recorded files");
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn damaged(name: &str) -> bool {
    ["bad-", "check-", "truncated-", "not-", "big-"]
        .iter()
        .any(|start| name.starts_with(start))
}

fn open(contents: &[u8], options: Options) -> Result<Db, Error> {
    Db::open_storage(Box::new(MemStorage::with_contents(contents)), options)
}

fn read_only() -> Options {
    Options {
        read_only: true,
        ..Options::default()
    }
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares buckets with their description; `bucket` opens one.
fn compare<'tx>(
    mut cursor: Cursor<'tx>,
    bucket: &dyn Fn(&[u8]) -> Bucket<'tx>,
    expected: &Value,
    file: &str,
) {
    let none = Vec::new();
    let mut expected = expected.as_array().unwrap_or(&none).iter();
    while let Some((name, value)) = cursor.next().unwrap() {
        if value.is_some() {
            continue;
        }
        let expected = expected.next().expect("a recorded bucket");
        assert_eq!(name, unhex(&expected["name_hex"]), "{file}");
        let found = bucket(name);
        assert_eq!(
            found.sequence(),
            expected["sequence"].as_u64().unwrap(),
            "{file}"
        );
        let (keys, digest, first, last) = pairs(&found);
        let place = format!("{file}: {}", expected["name"]);
        assert_eq!(keys, expected["keys"].as_u64().unwrap(), "{place}");
        assert_eq!(digest, expected["sha256"].as_str().unwrap(), "{place}");
        if keys > 0 {
            assert_eq!(first, unhex(&expected["first_key_hex"]), "{place}");
            assert_eq!(last, unhex(&expected["last_key_hex"]), "{place}");
        }
        let inner = |name: &[u8]| found.bucket(name).unwrap().unwrap();
        compare(found.cursor(), &inner, &expected["buckets"], file);
    }
    assert!(
        expected.next().is_none(),
        "{file}: a recorded bucket is missing"
    );
}

/// Number, digest, first and last key of a bucket's pairs.
fn pairs(bucket: &Bucket<'_>) -> (u64, String, Vec<u8>, Vec<u8>) {
    let mut digest = Sha256::new();
    let (mut keys, mut first, mut last) = (0, Vec::new(), Vec::new());
    let mut cursor = bucket.cursor();
    while let Some((key, value)) = cursor.next().unwrap() {
        let Some(value) = value else { continue };
        if keys == 0 {
            first = key.to_vec();
        }
        last = key.to_vec();
        keys += 1;
        for part in [key, value] {
            digest.update(u32::try_from(part.len()).unwrap().to_be_bytes());
            digest.update(part);
        }
    }
    (keys, hex(&digest.finalize()), first, last)
}

fn compare_all(tx: &ReadTx, json: &Value, file: &str) {
    compare(
        tx.cursor(),
        &|name| tx.bucket(name).unwrap().unwrap(),
        &json["buckets"],
        file,
    );
}

fn texts(problems: &Value) -> Vec<&str> {
    problems
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect()
}

#[test]
fn sound_files_have_the_recorded_contents_and_free_pages() {
    for (name, contents, json) in files(|name| !damaged(name)) {
        let db = open(&contents, read_only()).unwrap();
        assert_eq!(
            u64::from(db.page_size()),
            json["page_size"].as_u64().unwrap(),
            "{name}"
        );
        let tx = db.begin_read().unwrap();
        assert_eq!(tx.tx_id().0, json["txid"].as_u64().unwrap(), "{name}");
        assert_eq!(tx.size(), json["logical_size"].as_u64().unwrap(), "{name}");
        compare_all(&tx, &json, &name);
        assert_eq!(check(&tx), [], "{name}");

        for freelist in [FreelistKind::Array, FreelistKind::Map] {
            let options = Options {
                freelist,
                no_freelist_sync: true,
                ..Options::default()
            };
            let db = open(&contents, options).unwrap();
            let free = db.stats().free_pages;
            assert_eq!(
                free,
                json["free_pages"].as_u64().unwrap(),
                "{name} {freelist:?}"
            );
        }
    }
}

#[test]
fn a_written_to_file_keeps_the_recorded_contents() {
    for (name, contents, json) in files(|name| !damaged(name)) {
        for no_freelist_sync in [false, true] {
            let storage = MemStorage::with_contents(&contents);
            let options = Options {
                no_freelist_sync,
                ..Options::default()
            };
            let db = Db::open_storage(Box::new(storage.clone()), options.clone()).unwrap();
            for round in 0..3u32 {
                let mut tx = db.begin_write().unwrap();
                let mut bucket = tx.create_bucket_if_not_exists(b"zz ours").unwrap();
                for i in 0..300u32 {
                    bucket
                        .put(&(i * 3 + round).to_be_bytes(), &[1; 50])
                        .unwrap();
                }
                tx.commit().unwrap();
            }
            let mut tx = db.begin_write().unwrap();
            tx.delete_bucket(b"zz ours").unwrap();
            tx.commit().unwrap();
            drop(db);
            let db = Db::open_storage(Box::new(storage.clone()), options).unwrap();
            let tx = db.begin_read().unwrap();
            compare_all(&tx, &json, &name);
            assert_eq!(check(&tx), [], "{name}");
        }
    }
}

#[test]
fn a_compacted_copy_has_the_recorded_contents() {
    for (name, contents, json) in files(|name| !damaged(name)) {
        for limit in [0, 65_536] {
            let src = open(&contents, read_only()).unwrap();
            let dst = open(&[], Options::default()).unwrap();
            compact(&src, &dst, limit, 1.0).unwrap();
            let tx = dst.begin_read().unwrap();
            compare_all(&tx, &json, &name);
            assert_eq!(check(&tx), [], "{name}");
        }
    }
}

#[test]
fn an_image_of_manytx_is_the_recorded_one() {
    let of = |wanted: &str| files(|name| name == wanted).remove(0).1;
    let db = open(&of("manytx"), read_only()).unwrap();
    let mut image = Vec::new();
    db.begin_read().unwrap().write_to(&mut image).unwrap();
    let recorded = of("writeto");
    assert_eq!(image.len(), recorded.len());
    assert!(image == recorded, "byte for byte");
}

#[test]
fn damaged_metas_and_cut_files_open_or_fail_as_recorded() {
    for (name, contents, json) in files(|name| damaged(name) && !name.starts_with("check-")) {
        let result = open(&contents, read_only());
        let recorded = &json["open_ro"];
        match (recorded["error"].as_str(), result) {
            (Some(text), Err(error)) => {
                // Read-only storage is never written to, so the text of an empty file differs.
                if !text.ends_with("bad file descriptor") {
                    assert_eq!(error.to_string(), text, "{name}");
                }
            }
            // The real one dies of a bus error when it touches what is missing.
            (None, Err(error)) => {
                assert!(json["walk_panic"].is_string(), "{name}: {error}");
                assert!(matches!(error, Error::Corrupt { .. }), "{name}: {error}");
            }
            (None, Ok(db)) => {
                let tx = db.begin_read().unwrap();
                assert_eq!(Some(tx.tx_id().0), recorded["txid"].as_u64(), "{name}");
                assert_eq!(
                    Some(u64::from(db.page_size())),
                    recorded["page_size"].as_u64()
                );
                compare_all(&tx, &json, &name);
                let problems: Vec<String> = check(&tx).iter().map(ToString::to_string).collect();
                assert_eq!(problems, texts(&json["check_errors"]), "{name}");
            }
            (Some(text), Ok(_)) => panic!("{name}: opened instead of {text}"),
        }
    }
}

#[test]
fn a_damaged_file_is_refused_as_recorded_and_not_changed_by_the_attempt() {
    for (name, contents, json) in files(damaged) {
        let storage = MemStorage::with_contents(&contents);
        let result = Db::open_storage(Box::new(storage.clone()), Options::default());
        let recorded = &json["open_rw"];
        if recorded["error"].is_string() || recorded["panic"].is_string() {
            assert!(result.is_err(), "{name}");
        } else {
            assert!(result.is_ok(), "{name}: {:?}", result.err());
        }
        if recorded["file_changed_by_open"] == false {
            assert!(storage.contents() == contents, "{name}");
        }
        assert_eq!(
            Some(storage.len().unwrap()),
            recorded["file_size_after"].as_u64(),
            "{name}"
        );
    }
}

#[test]
fn check_finds_the_recorded_damage() {
    for (name, contents, json) in files(|name| name.starts_with("check-")) {
        let db = open(&contents, read_only()).unwrap();
        let problems: Vec<String> = check(&db.begin_read().unwrap())
            .iter()
            .map(ToString::to_string)
            .collect();
        if json["check_errors"].is_array() {
            assert_eq!(problems, texts(&json["check_errors"]), "{name}");
            continue;
        }
        // Here the real one panicked, and at best its command line tells something.
        let stdout = json["cli"]
            .as_array()
            .and_then(|calls| calls.iter().find(|call| call["args"][1] == "check"))
            .map_or("", |call| call["stdout"].as_str().unwrap());
        let told: Vec<&str> = stdout.lines().collect();
        match name.as_str() {
            // The real one compares the number of a page behind the last before it looks whether
            // the number is possible.
            "check-out-of-bounds" => assert_eq!(problems, ["page 372: out of bounds: 367"]),
            // What comes then is a panic of its own.
            "check-invalid-type" => assert_eq!(problems[..2], told[..2], "{problems:?}"),
            "check-freelist-wrong-type" | "check-nofreelist-multiple-references" => {
                assert!(!problems.is_empty(), "{name}");
            }
            _ => assert_eq!(problems, told[..1], "{name}"),
        }
    }
}

/// What `keelson bolt surgery freelist abandon` and `rebuild` do to a file, and an open after it.
fn rebuilt(contents: &[u8]) -> Db {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.db");
    std::fs::write(&path, contents).unwrap();
    RawFile::open(&path, true)
        .unwrap()
        .abandon_freelist()
        .unwrap();
    let options = Options {
        walk_in_background: false,
        ..Options::default()
    };
    Db::open(&path, options.clone()).unwrap().close().unwrap();
    let db = Db::open(&path, options).unwrap();
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(b"zz ours").unwrap();
    tx.commit().unwrap();
    let mut tx = db.begin_write().unwrap();
    tx.delete_bucket(b"zz ours").unwrap();
    tx.commit().unwrap();
    db
}

#[test]
fn a_new_list_of_free_pages_puts_right_what_check_says_it_does_and_nothing_else() {
    let mut repaired = Vec::new();
    // The sound file that the damaged ones were made of.
    let (_, _, origin) = files(|name| name == "deleted-array").remove(0);
    for (name, contents, json) in files(|name| name.starts_with("check-")) {
        let damaged = open(&contents, read_only()).unwrap();
        let problems = check(&damaged.begin_read().unwrap());
        let promised = problems
            .iter()
            .all(|problem| problem.repair == Some(Repair::Freelist));
        if !promised {
            // The open that would make the list reads all trees, so it finds the damage, or leaves
            // it as it is.
            let of_trees = problems.iter().filter(|problem| problem.repair.is_none());
            assert!(of_trees.count() > 0, "{name}: {problems:?}");
            continue;
        }
        let db = rebuilt(&contents);
        let tx = db.begin_read().unwrap();
        assert_eq!(check(&tx), [], "{name}");
        // Where the real one could not open the damaged file nothing is recorded of it.
        let recorded = json["buckets"].is_array();
        compare_all(&tx, if recorded { &json } else { &origin }, &name);
        repaired.push(name);
    }
    let expected = [
        "check-already-freed",
        "check-freelist-wrong-type",
        "check-reachable-freed",
        "check-unreachable-unfreed",
    ];
    assert_eq!(repaired, expected);
}
