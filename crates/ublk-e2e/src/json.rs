//! Accesses fields in the output of `ublkctl --json`.

use anyhow::{Context, Result};
use serde_json::Value;

/// The nearest field of this name: the value's own before nested ones.
pub fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let mut level = vec![value];
    while !level.is_empty() {
        if let Some(found) = level.iter().find_map(|v| v.get(key)) {
            return Some(found);
        }
        level = level.into_iter().flat_map(children).collect();
    }
    None
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

/// A field that is a number.
pub fn number(value: &Value, key: &str) -> Result<u64> {
    let field = find(value, key).and_then(Value::as_u64);
    field.with_context(|| format!("no number `{key}` in {value}"))
}

/// A field that is a string.
pub fn text(value: &Value, key: &str) -> Result<String> {
    let field = find(value, key).and_then(Value::as_str);
    Ok(field
        .with_context(|| format!("no text `{key}` in {value}"))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_field_is_found() {
        let value = serde_json::json!({
            "a": {"id": 7, "b": {"deep": 1}}, "list": [{"name": "x"}], "id": 3
        });
        assert_eq!(number(&value, "id").ok(), Some(3));
        assert_eq!(number(&value, "deep").ok(), Some(1));
        assert_eq!(text(&value, "name").ok().as_deref(), Some("x"));
        assert!(number(&value, "name").is_err() && text(&value, "none").is_err());
    }
}
