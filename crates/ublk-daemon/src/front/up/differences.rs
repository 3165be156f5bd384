//! How a device differs from its configuration.

use super::Difference;
use crate::spec::AddSpec;
use serde_json::Value;
use std::collections::BTreeMap;

/// The options in which a device differs from the configuration. Options that the configuration does not set are not
/// compared.
pub(super) fn differences(has: &AddSpec, id: u32, wanted: &AddSpec) -> Vec<Difference> {
    let mut has = has.clone();
    has.id = Some(id);
    let (has, wanted) = (leaves(&has), leaves(wanted));
    if has.get("backend") != wanted.get("backend") {
        let word = |of: &BTreeMap<String, Value>| of.get("backend").map_or_else(String::new, text);
        return vec![Difference {
            option: "backend".to_owned(),
            has: word(&has),
            wanted: word(&wanted),
        }];
    }
    let any_data = wanted.get("auto").is_some_and(|auto| !auto.is_null());
    let open = |option: &str, value: &Value| {
        value.is_null()
            || matches!(option, "auto" | "force" | "trust-kernel" | "bytes")
            || (option == "data" && any_data)
            || (option == "block-size" && value == &Value::from(0))
    };
    let all = wanted.iter().filter(|(option, value)| !open(option, value));
    all.filter_map(|(option, value)| {
        let is = has.get(option).unwrap_or(&Value::Null);
        (is != value).then(|| Difference {
            option: option.clone(),
            has: text(is),
            wanted: text(value),
        })
    })
    .collect()
}

/// The fields of a specification, named like the options of `add`.
fn leaves(spec: &AddSpec) -> BTreeMap<String, Value> {
    fn walk(name: &str, value: Value, into: &mut BTreeMap<String, Value>) {
        match value {
            // `size` is also a field of the backend.
            Value::Object(fields) if name == "zones" => {
                for (field, value) in fields {
                    let option = match field.as_str() {
                        "size" | "capacity" => format!("zone-{field}"),
                        _ => format!("{field}-zones"),
                    };
                    walk(&option, value, into);
                }
            }
            Value::Object(fields) if name == "tls" => {
                for (field, value) in fields {
                    let option = match field.as_str() {
                        "certificate" => "tls-cert".to_owned(),
                        _ => format!("tls-{field}"),
                    };
                    walk(&option, value, into);
                }
            }
            Value::Object(fields) => {
                for (field, value) in fields {
                    let field = if field == "kind" { name } else { &field };
                    walk(field, value, into);
                }
            }
            // Members: what was left open of each is not compared.
            Value::Array(all) if name == "files" => {
                into.insert(name.to_owned(), Value::from(all.len()));
                for (number, fields) in all.into_iter().enumerate() {
                    let fields = fields.as_object().cloned().unwrap_or_default();
                    for (field, value) in fields {
                        walk(&format!("file {} {field}", number + 1), value, into);
                    }
                }
            }
            value => {
                let (name, value) = match (name, value) {
                    ("max_io_bytes", value) => ("max-io".to_owned(), value),
                    ("discard", Value::Bool(yes)) => ("no-discard".to_owned(), Value::Bool(!yes)),
                    (name, value) => (name.replace('_', "-"), value),
                };
                into.insert(name, value);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk("", serde_json::to_value(spec).unwrap_or_default(), &mut all);
    if let Some(integrity) = spec.parameters.integrity {
        // One option, which has the fields as words.
        let mut fields = BTreeMap::new();
        let value = serde_json::to_value(integrity).unwrap_or_default();
        walk("", value, &mut fields);
        all.retain(|name, _| !fields.contains_key(name));
        all.insert("integrity".to_owned(), integrity.to_string().into());
    }
    all
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}
