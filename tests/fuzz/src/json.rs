//! JSON of ours with changes from a fuzzer's input: numbers, truths and lengths of lists.

use serde_json::Value;

use crate::input::Input;
use crate::memory;

/// Changes to one value at most.
const CHANGES: usize = 16;

/// Changes parts of `value`, as many as the input says.
pub fn change(value: &mut Value, input: &mut Input<'_>) {
    for _ in 0..CHANGES {
        if input.is_empty() {
            break;
        }
        let mut at = usize::from(input.u16()) % count(value);
        change_one(value, &mut at, input);
    }
}

/// Values in `value`, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// Changes value number `at`; whether it was found.
fn change_one(value: &mut Value, at: &mut usize, input: &mut Input<'_>) -> bool {
    if *at == 0 {
        alter(value, input);
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| change_one(item, at, input)),
        Value::Object(fields) => fields
            .values_mut()
            .any(|field| change_one(field, at, input)),
        _ => false,
    }
}

fn alter(value: &mut Value, input: &mut Input<'_>) {
    match value {
        Value::Bool(flag) => *flag = !*flag,
        Value::Number(number) => {
            let new = match input.below(10) {
                0 => number.as_u64().unwrap_or(0) ^ 1 << input.below(64),
                1 => input.u8().into(),
                2 => input.u16().into(),
                3 => memory::address(input),
                4 => input.u32().into(),
                6.. => input.u8().into(),
                _ => input.u64(),
            };
            *value = new.into();
        }
        Value::Array(items) if input.u8() & 1 != 0 => drop(items.pop()),
        Value::Array(items) => items.push(items.last().cloned().unwrap_or(0.into())),
        Value::Null => *value = input.u64().into(),
        Value::String(_) | Value::Object(_) => {}
    }
}
