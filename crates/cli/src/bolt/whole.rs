//! Commands on a whole file: info, check, compact, shrink.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, anyhow, bail};
use keelson_bolt::{CheckOptions, Db, FreelistKind, Options, PageId, check_with};

use super::args::Call;
use super::{Output, path, text};

/// The file must exist.
pub(super) fn check_exists(file: &str) -> Result<Metadata> {
    std::fs::metadata(path(file)).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("source database file {file:?} doesn't exist"),
        _ => anyhow!("failed to open source database file {file:?}: {error}"),
    })
}

/// Opens the file for reading.
pub(super) fn open(file: &str) -> Result<Db> {
    check_exists(file)?;
    let options = Options {
        read_only: true,
        ..Options::default()
    };
    Ok(Db::open(path(file), options)?)
}

pub(super) fn info(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let db = open(&call.arguments[0])?;
    writeln!(output.out, "Page Size: {}", db.page_size())?;
    Ok(())
}

pub(super) fn check(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let db = open(&call.arguments[0])?;
    let from = call.number::<u64>("from-page");
    let options = CheckOptions {
        from_page: (from != 0).then_some(PageId(from)),
        key_text: text::text_or_hex,
    };
    let problems = check_with(&*db.begin_read()?, &options);
    for problem in &problems {
        writeln!(output.out, "{problem}")?;
    }
    if !problems.is_empty() {
        writeln!(output.out, "{} errors found", problems.len())?;
        bail!("invalid value");
    }
    writeln!(output.out, "OK")?;
    Ok(())
}

pub(super) fn compact(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let to = call.text("output");
    if to.is_empty() {
        bail!("output file required");
    }
    let source = check_exists(&call.arguments[0])?;
    let before = source.len();
    let src = open(&call.arguments[0])?;
    let options = Options {
        no_sync: call.is_set("no-sync"),
        freelist: FreelistKind::Array,
        mode: source.mode() & 0o777,
        ..Options::default()
    };
    let dst = Db::open(path(to), options)?;
    // A limit below zero is none, as in bbolt.
    let limit = u64::try_from(call.number::<i64>("tx-max-size")).unwrap_or(0);
    keelson_bolt::compact(&src, &dst, limit, 1.0)?;
    drop(dst);
    let after = std::fs::metadata(path(to))?.len();
    if after == 0 {
        bail!("zero db size");
    }
    let gain = before as f64 / after as f64;
    writeln!(output.out, "{before} -> {after} bytes (gain={gain:.2}x)")?;
    Ok(())
}

pub(super) fn shrink(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let file = &call.arguments[0];
    check_exists(file)?;
    let db = Db::open(path(file), Options::default())?;
    let shrunk = db.shrink()?;
    let (before, after) = (shrunk.len_before, shrunk.len);
    writeln!(
        output.out,
        "{before} -> {after} bytes, {} pages moved",
        shrunk.pages_moved
    )?;
    Ok(())
}
