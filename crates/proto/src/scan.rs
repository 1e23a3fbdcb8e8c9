//! Looks at encoded protobuf without building anything from it.

/// A field as it stands in encoded bytes.
pub(crate) enum Field<'a> {
    /// A length-delimited field: a message, a string or bytes.
    Bytes(u32, &'a [u8]),
    /// Any other field.
    Scalar,
}

/// Takes the next field off the front of `bytes`; `None` at the end or where the bytes break off.
pub(crate) fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<Field<'a>> {
    let key = varint(bytes)?;
    let number = u32::try_from(key >> 3).ok()?;
    match key & 7 {
        0 => varint(bytes).map(|_| Field::Scalar),
        1 => take(bytes, 8).map(|_| Field::Scalar),
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            take(bytes, len).map(|content| Field::Bytes(number, content))
        }
        5 => take(bytes, 4).map(|_| Field::Scalar),
        // Groups: nothing of ours has them, and the decoder follows them to a depth of its own.
        _ => None,
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(len)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Whether following `child` from message to message goes deeper than `limit` levels.
///
/// `child(level_kind, field)` names the kind of message that a field of a message of some kind
/// holds, if it is one worth following. The walk uses no recursion, so that hostile input cannot
/// spend our stack here. Bytes that break off are left to the decoder to report.
pub(crate) fn deeper_than<K: Copy>(
    bytes: &[u8],
    root: K,
    limit: usize,
    child: impl Fn(K, u32) -> Option<K>,
) -> bool {
    let mut stack = vec![(root, bytes)];
    while let Some((kind, rest)) = stack.last_mut() {
        match next_field(rest) {
            Some(Field::Bytes(number, content)) => {
                if let Some(next) = child(*kind, number) {
                    if stack.len() >= limit {
                        return true;
                    }
                    stack.push((next, content));
                }
            }
            Some(Field::Scalar) => {}
            None => {
                stack.pop();
            }
        }
    }
    false
}
