//! Commands on what is stored: buckets, keys, get, inspect, stats.

use anyhow::{Result, bail};
use keelson_bolt::{Bucket, BucketStats, Error, ReadTx};

use super::args::Call;
use super::whole::open;
use super::{Output, text};

/// Writes bytes in a format, and a line feed.
pub(super) fn line(output: &mut Output<'_>, bytes: &[u8], format: &str) -> Result<()> {
    let mut text = text::format_bytes(bytes, format)?;
    text.push(b'\n');
    output.out.write_all(&text)?;
    Ok(())
}

fn last_bucket<'tx>(tx: &'tx ReadTx, names: &[String]) -> Result<Bucket<'tx>> {
    let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    Ok(tx.bucket_path(&names)?.ok_or(Error::BucketNotFound)?)
}

pub(super) fn buckets(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let tx = open(&call.arguments[0])?.begin_read()?;
    let mut names = tx.cursor();
    while let Some((name, _)) = names.next()? {
        line(output, name, "bytes")?;
    }
    Ok(())
}

pub(super) fn keys(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let tx = open(&call.arguments[0])?.begin_read()?;
    let mut keys = last_bucket(&tx, &call.arguments[1..])?.cursor();
    while let Some((key, _)) = keys.next()? {
        line(output, key, call.text("format"))?;
    }
    Ok(())
}

pub(super) fn get(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let [file, names @ .., key] = &call.arguments[..] else {
        bail!("bucket is required: bucket required");
    };
    if file.is_empty() {
        bail!("path required");
    }
    let key = text::parse_bytes(key, call.text("parse-format"))?;
    if key.is_empty() {
        bail!("key is required: key required");
    }
    let tx = open(file)?.begin_read()?;
    match last_bucket(&tx, names)?.get(&key)? {
        Some(value) => line(output, value, call.text("format")),
        None => bail!(
            "Error key not found for key: {} hex: \"{}\"",
            text::quote(&key),
            text::hex(&key)
        ),
    }
}

pub(super) fn inspect(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let tx = open(&call.arguments[0])?.begin_read()?;
    if let Some(top) = tx.bucket_path(&[])? {
        let mut text = String::new();
        describe(&top, b"root", 0, &mut text)?;
        writeln!(output.out, "{text}")?;
    }
    Ok(())
}

/// A bucket as JSON, indented by `depth` levels.
fn describe(bucket: &Bucket<'_>, name: &[u8], depth: usize, out: &mut String) -> Result<()> {
    let mut keys = 0u64;
    let mut inner = Vec::new();
    let mut entries = bucket.cursor();
    while let Some((key, value)) = entries.next()? {
        match value {
            Some(_) => keys += 1,
            None => inner.extend(bucket.bucket(key)?.map(|bucket| (key, bucket))),
        }
    }
    let indent = "    ".repeat(depth);
    *out += &format!("{indent}{{\n{indent}    \"name\": {},\n", text::json(name));
    *out += &format!("{indent}    \"keyN\": {keys}");
    if !inner.is_empty() {
        *out += &format!(",\n{indent}    \"buckets\": [\n");
        for (i, (name, bucket)) in inner.iter().enumerate() {
            if i > 0 {
                *out += ",\n";
            }
            describe(bucket, name, depth + 2, out)?;
        }
        *out += &format!("\n{indent}    ]");
    }
    *out += &format!("\n{indent}}}");
    Ok(())
}

pub(super) fn stats(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let prefix = call.arguments.get(1).map_or("", String::as_str);
    let tx = open(&call.arguments[0])?.begin_read()?;
    let mut sum = BucketStats::default();
    let mut count = 0u64;
    let mut names = tx.cursor();
    while let Some((name, _)) = names.next()? {
        if name.starts_with(prefix.as_bytes())
            && let Some(bucket) = tx.bucket(name)?
        {
            sum.add(&bucket.stats()?);
            count += 1;
        }
    }
    let percent = |part: u64, whole: u64| match whole {
        0 => 0,
        // In single precision and cut, as bbolt has it.
        whole => (part as f32 * 100.0 / whole as f32) as u64,
    };
    let s = &sum;
    writeln!(output.out, "Aggregate statistics for {count} buckets\n")?;
    writeln!(output.out, "Page count statistics")?;
    writeln!(
        output.out,
        "\tNumber of logical branch pages: {}",
        s.branch_pages
    )?;
    let overflow = s.branch_overflow_pages;
    writeln!(
        output.out,
        "\tNumber of physical branch overflow pages: {overflow}"
    )?;
    writeln!(
        output.out,
        "\tNumber of logical leaf pages: {}",
        s.leaf_pages
    )?;
    let overflow = s.leaf_overflow_pages;
    writeln!(
        output.out,
        "\tNumber of physical leaf overflow pages: {overflow}"
    )?;
    writeln!(output.out, "Tree statistics")?;
    writeln!(output.out, "\tNumber of keys/value pairs: {}", s.keys)?;
    writeln!(output.out, "\tNumber of levels in B+tree: {}", s.depth)?;
    writeln!(output.out, "Page size utilization")?;
    for (kind, bytes, used) in [
        ("branch", s.branch_bytes, s.branch_used),
        ("leaf", s.leaf_bytes, s.leaf_used),
    ] {
        let part = percent(used, bytes);
        writeln!(
            output.out,
            "\tBytes allocated for physical {kind} pages: {bytes}"
        )?;
        writeln!(
            output.out,
            "\tBytes actually used for {kind} data: {used} ({part}%)"
        )?;
    }
    writeln!(output.out, "Bucket statistics")?;
    writeln!(output.out, "\tTotal number of buckets: {}", s.buckets)?;
    let (inline, part) = (s.inline_buckets, percent(s.inline_buckets, s.buckets));
    writeln!(
        output.out,
        "\tTotal number on inlined buckets: {inline} ({part}%)"
    )?;
    let (used, part) = (s.inline_used, percent(s.inline_used, s.leaf_used));
    writeln!(
        output.out,
        "\tBytes used for inlined buckets: {used} ({part}%)"
    )?;
    Ok(())
}
