//! Surgery: each command copies the file and changes the copy.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use keelson_bolt::surgery::{RawFile, RawMeta};
use keelson_bolt::{Db, Error, Options, PageId};

use super::args::Call;
use super::whole::check_exists;
use super::{Output, path};

/// The fields of a meta page that can be set.
const FIELDS: [&str; 4] = ["pageSize", "root", "freelist", "pgid"];

fn output_given(call: &Call) -> Result<()> {
    ensure!(
        !call.text("output").is_empty(),
        "output database path wasn't given, specify output database file path with --output option"
    );
    Ok(())
}

/// Copies the file to the output, which must not exist yet. `step` names the command in errors.
fn copy<'a>(call: &'a Call, step: &str) -> Result<&'a Path> {
    check_exists(&call.arguments[0])?;
    copy_file(&call.arguments[0], call.text("output"))
        .with_context(|| format!("[{step}] copy file failed"))?;
    Ok(path(call.text("output")))
}

fn copy_file(from: &str, to: &str) -> Result<()> {
    ensure!(!path(to).exists(), "output file {to:?} already exists");
    std::fs::copy(path(from), path(to))
        .with_context(|| format!("failed to copy database file from {from:?} to {to:?}"))?;
    Ok(())
}

/// The meta with the larger transaction number, sound or not.
fn newest_meta(file: &Path) -> Result<RawMeta> {
    let raw = RawFile::open(file, false).context("read Page size failed")?;
    let read = |id: u64| {
        RawMeta::read_at(file, id * raw.page_size())
            .with_context(|| format!("read meta page {id} failed"))
    };
    let (first, second) = (read(0)?, read(1)?);
    Ok(if first.tx_id > second.tx_id {
        first
    } else {
        second
    })
}

fn warn_of_lost_pages(output: &mut Output<'_>) -> Result<()> {
    let consider = "Please consider executing `./bbolt surgery freelist abandon ...`";
    writeln!(
        output.out,
        "WARNING: The clearing has abandoned some pages that are not yet referenced from free list.\n{consider}"
    )?;
    Ok(())
}

pub(super) fn revert_meta_page(call: &Call, output: &mut Output<'_>) -> Result<()> {
    output_given(call)?;
    let copied = copy(call, "revert-meta-page")?;
    RawFile::open(copied, true)
        .and_then(|raw| raw.revert_meta_page())
        .context("revert-meta-page command failed")?;
    writeln!(output.out, "The meta page is reverted.")?;
    Ok(())
}

pub(super) fn copy_page(call: &Call, output: &mut Output<'_>) -> Result<()> {
    output_given(call)?;
    let from = call.number::<u64>("from-page");
    let to = call.number::<u64>("to-page");
    ensure!(
        from != to,
        "'--from-page' and '--to-page' have the same value: {from}"
    );
    let copied = copy(call, "copy-page")?;
    RawFile::open(copied, true)
        .and_then(|raw| raw.copy_page(PageId(from), PageId(to)))
        .context("copy-page command failed")?;
    if newest_meta(path(&call.arguments[0]))?.has_freelist() {
        writeln!(output.out, "WARNING: the free list might have changed.")?;
        let consider = "Please consider executing `./bbolt surgery freelist abandon ...`";
        writeln!(output.out, "{consider}")?;
    }
    writeln!(
        output.out,
        "The page {from} was successfully copied to page {to}"
    )?;
    Ok(())
}

fn page_id(call: &Call) -> Result<PageId> {
    let id = call.number::<u64>("pageId");
    ensure!(id >= 2, "the pageId must be at least 2, but got {id}");
    Ok(PageId(id))
}

pub(super) fn clear_page(call: &Call, output: &mut Output<'_>) -> Result<()> {
    output_given(call)?;
    let id = page_id(call)?;
    let copied = copy(call, "clear-page")?;
    let lost = RawFile::open(copied, true)
        .and_then(|raw| raw.clear_elements(id, 0, -1))
        .context("clear-page command failed")?;
    if lost {
        warn_of_lost_pages(output)?;
    }
    writeln!(output.out, "The page ({id}) was cleared")?;
    Ok(())
}

pub(super) fn clear_page_elements(call: &Call, output: &mut Output<'_>) -> Result<()> {
    output_given(call)?;
    let id = page_id(call)?;
    let from = call.number::<i64>("from-index");
    let to = call.number::<i64>("to-index");
    let copied = copy(call, "clear-page-element")?;
    let lost = RawFile::open(copied, true)
        .and_then(|raw| raw.clear_elements(id, from, to))
        .context("clear-page-element command failed")?;
    if lost {
        warn_of_lost_pages(output)?;
    }
    writeln!(
        output.out,
        "All elements in [{from}, {to}) in page {id} were cleared"
    )?;
    Ok(())
}

pub(super) fn abandon_freelist(call: &Call, output: &mut Output<'_>) -> Result<()> {
    output_given(call)?;
    let copied = copy(call, "freelist abandon")?;
    RawFile::open(copied, true)
        .and_then(|raw| raw.abandon_freelist())
        // The words are bbolt's.
        .context("abandom-freelist command failed")?;
    writeln!(
        output.out,
        "The freelist was abandoned in both meta pages.\nIt may cause some delay on next startup because bbolt needs to scan the whole db to reconstruct the free list."
    )?;
    Ok(())
}

pub(super) fn rebuild_freelist(call: &Call, output: &mut Output<'_>) -> Result<()> {
    output_given(call)?;
    check_exists(&call.arguments[0])?;
    ensure!(
        !newest_meta(path(&call.arguments[0]))?.has_freelist(),
        "the file already has freelist, please consider to abandon the freelist to forcibly rebuild it"
    );
    let copied = copy(call, "freelist rebuild")?;
    let options = Options {
        walk_in_background: false,
        ..Options::default()
    };
    // The open finds the free pages and writes them down.
    let db = Db::open(copied, options).context("[freelist rebuild] open db file failed")?;
    db.close()
        .context("[freelist rebuild] close db file failed")?;
    writeln!(output.out, "The freelist was successfully rebuilt.")?;
    Ok(())
}

pub(super) fn validate_meta(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let file = &call.arguments[0];
    check_exists(file)?;
    let mut page_size = 0;
    for id in 0..2 {
        let meta = RawMeta::read_at(path(file), id * page_size)
            .with_context(|| format!("read meta page {id} failed"))?;
        match meta.validate() {
            Ok(()) => writeln!(output.out, "The meta page {id} is valid!")?,
            Err(error) => {
                writeln!(
                    output.out,
                    "WARNING: The meta page {id} isn't valid: {error}!"
                )?;
            }
        }
        page_size = u64::from(meta.page_size);
    }
    Ok(())
}

/// The fields to be set, checked.
fn fields(call: &Call) -> Result<Vec<(&str, u64)>> {
    let given = call
        .text("fields")
        .split(',')
        .filter(|field| !field.is_empty());
    given
        .map(|field| {
            let Some((name, value)) = field.split_once(':').filter(|(_, v)| !v.contains(':'))
            else {
                bail!("invalid key-value pair: {field}");
            };
            ensure!(
                FIELDS.contains(&name),
                "field {name:?} isn't allowed to be updated"
            );
            let Ok(number) = value.parse() else {
                bail!("invalid value {value:?} for field {name:?}");
            };
            Ok((name, number))
        })
        .collect()
}

pub(super) fn update_meta(call: &Call, output: &mut Output<'_>) -> Result<()> {
    output_given(call)?;
    let id = call.number::<u64>("meta-page");
    ensure!(id <= 1, "invalid meta page id: {id}");
    let fields = fields(call)?;
    let copied = copy(call, "meta update")?;
    let read = |offset: u64| -> Result<RawMeta, Error> { RawMeta::read_at(copied, offset) };
    let page_size = match id {
        0 => 0,
        _ => {
            read(0)
                .context("read the first meta page failed")?
                .page_size
        }
    };
    let offset = id * u64::from(page_size);
    let mut meta = read(offset).with_context(|| format!("read meta page {id} failed"))?;
    for (name, value) in &fields {
        match *name {
            // The field has 32 bits; bbolt cuts a larger number too.
            "pageSize" => meta.page_size = (*value & u64::from(u32::MAX)) as u32,
            "root" => (meta.root, meta.sequence) = (PageId(*value), 0),
            "freelist" => meta.freelist = PageId(*value),
            _ => meta.high_water = PageId(*value),
        }
    }
    let changed = meta.mend() || !fields.is_empty();
    if changed {
        meta.write_at(copied, offset)
            .with_context(|| format!("[meta update] write meta page {id} failed"))?;
    }
    if id == 1 && page_size != meta.page_size {
        writeln!(
            output.out,
            "WARNING: The page size ({page_size}) in the first meta page doesn't match the second meta page ({})",
            meta.page_size
        )?;
    }
    if changed {
        writeln!(output.out, "The meta page {id} has been updated!")?;
    } else {
        writeln!(output.out, "Nothing changed!")?;
    }
    Ok(())
}
