//! Protobuf bytes to protobuf's JSON form, by the schema that the server itself is built from.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto};
use serde_json::{Map, Value, json};

/// Messages nest no deeper than this: a recording holds a few hundred levels of nested transactions.
const MAX_DEPTH: usize = 10_000;

/// Messages, enums and methods by their full names, each with the leading dot that protobuf gives it.
#[derive(Debug)]
pub struct Schema {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, EnumDescriptorProto>,
    methods: HashMap<String, Method>,
}

/// One RPC: the names of its messages.
#[derive(Debug, Clone)]
pub struct Method {
    /// Full name of the request message.
    pub input: String,
    /// Full name of the response message.
    pub output: String,
}

impl Schema {
    /// Reads every `.proto` file of the folder.
    ///
    /// # Errors
    /// When a file does not compile.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "proto")
            {
                files.push(path);
            }
        }
        files.sort();
        let set = protox::compile(&files, [folder]).context("the schema does not compile")?;
        let mut schema = Self {
            messages: HashMap::new(),
            enums: HashMap::new(),
            methods: HashMap::new(),
        };
        for file in set.file {
            let package = file.package.clone().unwrap_or_default();
            let scope = format!(".{package}");
            for message in file.message_type {
                schema.add_message(&scope, message);
            }
            for item in file.enum_type {
                schema
                    .enums
                    .insert(format!("{scope}.{}", item.name()), item);
            }
            for service in file.service {
                for method in &service.method {
                    schema.methods.insert(
                        format!("/{package}.{}/{}", service.name(), method.name()),
                        Method {
                            input: method.input_type().to_owned(),
                            output: method.output_type().to_owned(),
                        },
                    );
                }
            }
        }
        Ok(schema)
    }

    fn add_message(&mut self, scope: &str, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in &message.nested_type {
            self.add_message(&name, nested.clone());
        }
        for item in &message.enum_type {
            self.enums
                .insert(format!("{name}.{}", item.name()), item.clone());
        }
        self.messages.insert(name, message);
    }

    /// The method of a path such as `/etcdserverpb.KV/Range`, when the schema has it.
    #[must_use]
    pub fn method(&self, path: &str) -> Option<&Method> {
        self.methods.get(path)
    }

    /// A message in protobuf's JSON form, with the schema's own field names and without fields at
    /// their default. A field the schema does not have appears as `#number`.
    ///
    /// # Errors
    /// When the bytes are no message of that type.
    pub fn to_json(&self, message: &str, bytes: &[u8]) -> Result<Value> {
        self.message_json(message, bytes, 0)
    }

    fn message_json(&self, name: &str, bytes: &[u8], depth: usize) -> Result<Value> {
        ensure!(depth < MAX_DEPTH, "{name}: nested too deeply");
        let descriptor = self
            .messages
            .get(name)
            .with_context(|| format!("no message {name} in the schema"))?;
        let mut object = Map::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (number, raw) = take_field(&mut rest).with_context(|| format!("in {name}"))?;
            let Some(field) = descriptor
                .field
                .iter()
                .find(|field| field.number() as u64 == number)
            else {
                object.insert(format!("#{number}"), json!(format!("{raw:?}")));
                continue;
            };
            self.add_field(&mut object, field, raw, depth)
                .with_context(|| format!("in {name}.{}", field.name()))?;
        }
        Ok(Value::Object(object))
    }

    fn add_field(
        &self,
        object: &mut Map<String, Value>,
        field: &FieldDescriptorProto,
        raw: Raw<'_>,
        depth: usize,
    ) -> Result<()> {
        let name = field.name().to_owned();
        if field.label() != Label::Repeated {
            let value = self.value_json(field, raw, depth)?;
            let in_oneof = field.oneof_index.is_some();
            if in_oneof || !is_default(field, raw) {
                object.insert(name, value);
            }
            return Ok(());
        }
        let entry = self.messages.get(field.type_name());
        if entry.is_some_and(|entry| {
            entry
                .options
                .as_ref()
                .is_some_and(|options| options.map_entry())
        }) {
            let pair = self.value_json(field, raw, depth)?;
            let key = pair
                .get("key")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            let value = pair.get("value").cloned().unwrap_or_else(|| json!({}));
            let map = object.entry(name).or_insert_with(|| json!({}));
            map.as_object_mut()
                .context("a map field is an object")?
                .insert(key, value);
            return Ok(());
        }
        let list = object.entry(name).or_insert_with(|| json!([]));
        let list = list.as_array_mut().context("a repeated field is a list")?;
        if let (Raw::Bytes(packed), true) = (raw, is_packable(field.r#type())) {
            let mut rest = packed;
            while !rest.is_empty() {
                let item = take_packed(field.r#type(), &mut rest)?;
                list.push(self.value_json(field, item, depth)?);
            }
        } else {
            list.push(self.value_json(field, raw, depth)?);
        }
        Ok(())
    }

    fn value_json(
        &self,
        field: &FieldDescriptorProto,
        raw: Raw<'_>,
        depth: usize,
    ) -> Result<Value> {
        Ok(match (field.r#type(), raw) {
            (Type::Int64, Raw::Varint(number)) => json!(number.cast_signed().to_string()),
            (Type::Uint64, Raw::Varint(number)) => json!(number.to_string()),
            // A 32-bit field keeps the low half of what the wire holds.
            #[expect(clippy::cast_possible_truncation, reason = "as protobuf defines it")]
            (Type::Int32, Raw::Varint(number)) => json!(number as i32),
            #[expect(clippy::cast_possible_truncation, reason = "as protobuf defines it")]
            (Type::Uint32, Raw::Varint(number)) => json!(number as u32),
            (Type::Bool, Raw::Varint(number)) => json!(number != 0),
            #[expect(clippy::cast_possible_truncation, reason = "as protobuf defines it")]
            (Type::Enum, Raw::Varint(number)) => {
                let number = number as i32;
                let values = self
                    .enums
                    .get(field.type_name())
                    .with_context(|| format!("no enum {}", field.type_name()))?;
                values
                    .value
                    .iter()
                    .find(|value| value.number() == number)
                    .map_or_else(|| json!(number), |value| json!(value.name()))
            }
            (Type::String, Raw::Bytes(bytes)) => json!(String::from_utf8_lossy(bytes)),
            (Type::Bytes, Raw::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
            (Type::Message, Raw::Bytes(bytes)) => {
                self.message_json(field.type_name(), bytes, depth + 1)?
            }
            (kind, raw) => bail!("{kind:?} cannot be {raw:?}"),
        })
    }
}

fn is_default(field: &FieldDescriptorProto, raw: Raw<'_>) -> bool {
    match raw {
        Raw::Varint(number) => number == 0,
        Raw::Bytes(bytes) => bytes.is_empty() && field.r#type() != Type::Message,
        Raw::Fixed64(number) => number == 0,
        Raw::Fixed32(number) => number == 0,
    }
}

fn is_packable(kind: Type) -> bool {
    !matches!(
        kind,
        Type::String | Type::Bytes | Type::Message | Type::Group
    )
}

/// The value of one field as the wire shows it.
#[derive(Debug, Clone, Copy)]
enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Raw<'a>)> {
    let tag = take_varint(rest)?;
    let raw = match tag & 7 {
        0 => Raw::Varint(take_varint(rest)?),
        1 => Raw::Fixed64(u64::from_le_bytes(take_bytes(rest, 8)?.try_into()?)),
        2 => {
            let length = usize::try_from(take_varint(rest)?)?;
            Raw::Bytes(take_bytes(rest, length)?)
        }
        5 => Raw::Fixed32(u32::from_le_bytes(take_bytes(rest, 4)?.try_into()?)),
        kind => bail!("wire type {kind}"),
    };
    Ok((tag >> 3, raw))
}

fn take_packed<'a>(kind: Type, rest: &mut &'a [u8]) -> Result<Raw<'a>> {
    ensure!(
        !matches!(kind, Type::Double | Type::Float),
        "no floats in this API"
    );
    Ok(Raw::Varint(take_varint(rest)?))
}

fn take_varint(rest: &mut &[u8]) -> Result<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().context("a varint ends early")?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    bail!("a varint longer than ten bytes")
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    ensure!(
        length <= rest.len(),
        "{length} bytes announced, {} there",
        rest.len()
    );
    let (head, tail) = rest.split_at(length);
    *rest = tail;
    Ok(head)
}
