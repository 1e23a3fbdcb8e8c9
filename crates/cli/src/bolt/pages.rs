//! Commands on single pages: pages, page, page-item, dump.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use keelson_bolt::surgery::{RawElement, RawFile, RawPage};
use keelson_bolt::{Error, PageId};

use super::args::{Call, parse_uint};
use super::content::line;
use super::whole::{check_exists, open};
use super::{Output, path, text};

/// Stands between two pages.
const RULE: &str = "===============================================";
/// Bytes in a line of a dump.
const DUMP_LINE: usize = 16;

pub(super) fn pages(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let tx = open(&call.arguments[0])?.begin_read()?;
    let free: BTreeSet<PageId> = tx.free_pages()?.into_iter().collect();
    writeln!(output.out, "ID       TYPE       ITEMS  OVRFLW")?;
    writeln!(output.out, "======== ========== ====== ======")?;
    let mut id = PageId(0);
    while let Some(page) = tx.page(id)? {
        let (mut kind, mut count, mut overflow) = ("free", String::new(), String::new());
        let mut pages = 1;
        if !free.contains(&id) {
            kind = &page.kind;
            count = page.count.to_string();
            pages += u64::from(page.overflow);
            if page.overflow > 0 {
                overflow = page.overflow.to_string();
            }
        }
        writeln!(
            output.out,
            "{id:<8} {kind:<10} {count:<6} {overflow:<6}",
            id = id.0
        )?;
        id.0 += pages;
    }
    Ok(())
}

fn page_ids(arguments: &[String]) -> Result<Vec<PageId>> {
    let given = arguments.iter().filter(|text| !text.is_empty());
    given.map(|text| Ok(PageId(parse_uint(text)?))).collect()
}

pub(super) fn page(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let file = &call.arguments[0];
    let ids = page_ids(&call.arguments[1..])?;
    let all = call.is_set("all");
    ensure!(all || !ids.is_empty(), "page id required");
    ensure!(
        !all || ids.is_empty(),
        "invalid args: either use '--all' or 'pageid...'"
    );
    check_exists(file)?;
    let raw = RawFile::open(path(file), false);
    let format = call.text("format-value");
    if !all {
        for (i, id) in ids.iter().enumerate() {
            if i > 0 {
                writeln!(output.out, "{RULE}")?;
            }
            print_or_tell(output, &raw, *id, format)?;
        }
        return Ok(());
    }
    let end = match &raw {
        Ok(raw) => raw.high_water(),
        Err(error) => {
            write!(output.out, "cannot read number of pages: {error}")?;
            PageId(0)
        }
    };
    let mut id = PageId(0);
    while id < end {
        if id.0 > 0 {
            writeln!(output.out, "{RULE}")?;
        }
        id.0 += 1 + print_or_tell(output, &raw, id, format)?;
    }
    Ok(())
}

/// Prints a page, or why that fails, and gives the number of its overflow pages.
fn print_or_tell(
    output: &mut Output<'_>,
    raw: &Result<RawFile, Error>,
    id: PageId,
    format: &str,
) -> Result<u64> {
    let printed = match raw {
        Ok(raw) => print(output, raw, id, format),
        Err(error) => Err(anyhow::anyhow!("read Page size: {error}")),
    };
    match printed {
        Ok(overflow) => Ok(overflow),
        Err(error) => {
            // The words are bbolt's.
            writeln!(
                output.out,
                "Prining page {id} failed: {error}. Continuing..."
            )?;
            Ok(0)
        }
    }
}

fn print(output: &mut Output<'_>, raw: &RawFile, id: PageId, format: &str) -> Result<u64> {
    let page = raw.page(id)?;
    let kind = page.kind();
    let out = &mut *output.out;
    writeln!(out, "Page ID:    {id}")?;
    writeln!(out, "Page Type:  {kind}")?;
    writeln!(out, "Total Size: {} bytes", page.bytes().len())?;
    writeln!(out, "Overflow pages: {}", page.overflow())?;
    match &kind[..] {
        "meta" => print_meta(output, &page)?,
        "leaf" | "branch" => print_elements(output, &page, format)?,
        "freelist" => {
            let ids = page.free_pages()?;
            writeln!(out, "Item Count: {}", ids.len())?;
            writeln!(out, "Overflow: {}\n", page.overflow())?;
            for id in ids {
                writeln!(out, "{id}")?;
            }
            writeln!(out)?;
        }
        _ => {}
    }
    Ok(u64::from(page.overflow()))
}

fn print_meta(output: &mut Output<'_>, page: &RawPage) -> Result<()> {
    let meta = page.meta()?;
    let out = &mut *output.out;
    writeln!(out, "Version:    {}", meta.version)?;
    writeln!(out, "Page Size:  {} bytes", meta.page_size)?;
    writeln!(out, "Flags:      {:08x}", meta.flags)?;
    writeln!(out, "Root:       <pgid={}>", meta.root)?;
    writeln!(out, "Freelist:   <pgid={}>", meta.freelist)?;
    writeln!(out, "HWM:        <pgid={}>", meta.high_water)?;
    writeln!(out, "Txn ID:     {}", meta.tx_id)?;
    writeln!(out, "Checksum:   {:016x}\n", meta.checksum)?;
    Ok(())
}

fn print_elements(output: &mut Output<'_>, page: &RawPage, format: &str) -> Result<()> {
    writeln!(output.out, "Item Count: {}\n", page.count())?;
    for index in 0..usize::from(page.count()) {
        let (key, value) = match page.element(index)? {
            RawElement::Value { key, value } => (key, text::format_bytes(value, format)?),
            RawElement::Bucket {
                key,
                root,
                sequence,
                ..
            } => (key, format!("<pgid={root},seq={sequence}>").into_bytes()),
            RawElement::Child { key, page } => (key, format!("<pgid={page}>").into_bytes()),
        };
        write!(output.out, "{}: ", text::key_text(key))?;
        output.out.write_all(&value)?;
        writeln!(output.out)?;
    }
    writeln!(output.out)?;
    Ok(())
}

pub(super) fn page_item(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let [file, id, item] = &call.arguments[..] else {
        bail!("accepts 3 arg(s), received {}", call.arguments.len());
    };
    let (id, item) = (PageId(parse_uint(id)?), parse_uint(item)?);
    let (key_only, value_only) = (call.is_set("key-only"), call.is_set("value-only"));
    ensure!(
        !(key_only && value_only),
        "the --key-only or --value-only flag may be set, but not both"
    );
    check_exists(file)?;
    let page = match RawFile::open(path(file), false) {
        Ok(raw) => raw.page(id)?,
        Err(error) => bail!("read Page size: {error}"),
    };
    let count = page.count();
    ensure!(
        item < u64::from(count),
        "leafPageElement: expected item index less than {count}, but got {item}"
    );
    let kind = page.kind();
    ensure!(
        kind == "leaf",
        "leafPageElement: expected page type of 'leaf', but got '{kind}'"
    );
    let (key, value) = match page.element(usize::try_from(item)?)? {
        RawElement::Value { key, value } | RawElement::Bucket { key, value, .. } => (key, value),
        RawElement::Child { key, .. } => (key, &[][..]),
    };
    if !value_only {
        line(output, key, call.text("format"))?;
    }
    if !key_only {
        line(output, value, call.text("format"))?;
    }
    Ok(())
}

pub(super) fn dump(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let file = &call.arguments[0];
    let ids = page_ids(&call.arguments[1..])?;
    ensure!(!ids.is_empty(), "page id required");
    check_exists(file)?;
    let raw = RawFile::open(path(file), false)?;
    for (i, id) in ids.iter().enumerate() {
        if i > 0 {
            writeln!(output.out, "{RULE}")?;
        }
        let bytes = raw.page_bytes(*id)?;
        dump_page(output, &bytes, id.0 * raw.page_size())?;
    }
    Ok(())
}

/// Lines of sixteen bytes; equal ones are told once.
fn dump_page(output: &mut Output<'_>, bytes: &[u8], start: u64) -> Result<()> {
    let mut before: Option<&[u8]> = None;
    let mut skipped = false;
    let lines = bytes.chunks_exact(DUMP_LINE);
    let last = lines.len().saturating_sub(1);
    for (at, line) in lines.enumerate() {
        let address = start + (at * DUMP_LINE) as u64;
        if before == Some(line) && at != last {
            if !skipped {
                writeln!(output.out, "{address:07x} *")?;
                skipped = true;
            }
        } else {
            write!(output.out, "{address:07x}")?;
            for pair in line.chunks_exact(2) {
                write!(output.out, " {:02x}{:02x}", pair[0], pair[1])?;
            }
            writeln!(output.out)?;
            skipped = false;
        }
        before = Some(line);
    }
    writeln!(output.out)?;
    Ok(())
}
