//! libnbd's programs beside our client, on the same export.

use std::fs;

use nbd_client::{Export, TransmissionFlags};
use serde_json::Value;

use crate::common::client::{Client, options};
use crate::common::program::{Server, Stop, output};
use crate::exercise::{Random, whole};

/// nbdinfo finds the same size, flags and block sizes.
pub fn same_facts(server: &Server, export: &Export, has_info: bool) -> Result<(), Stop> {
    let fail = |what: String| Err(Stop::Fail(what));
    if !has_info {
        let size = output("nbdinfo", &["--size", &server.uri()])?;
        return match size.trim() == export.size.to_string() {
            true => Ok(()),
            false => fail(format!("nbdinfo: {size} bytes, here {}", export.size)),
        };
    }
    let text = output("nbdinfo", &["--json", "--no-content", &server.uri()])?;
    let all: Value = serde_json::from_str(&text)?;
    let Some(theirs) = all.pointer("/exports/0") else {
        return fail(format!("nbdinfo: {text}"));
    };
    let size = theirs.get("export-size").and_then(Value::as_u64);
    if size != Some(export.size) {
        return fail(format!("nbdinfo: {size:?} bytes, here {}", export.size));
    }
    let flags = [
        ("is_read_only", TransmissionFlags::READ_ONLY),
        ("is_rotational", TransmissionFlags::ROTATIONAL),
        ("can_cache", TransmissionFlags::SEND_CACHE),
        ("can_df", TransmissionFlags::SEND_DF),
        ("can_fast_zero", TransmissionFlags::SEND_FAST_ZERO),
        ("can_flush", TransmissionFlags::SEND_FLUSH),
        ("can_fua", TransmissionFlags::SEND_FUA),
        ("can_multi_conn", TransmissionFlags::CAN_MULTI_CONN),
        ("can_trim", TransmissionFlags::SEND_TRIM),
        ("can_zero", TransmissionFlags::SEND_WRITE_ZEROES),
    ];
    for (name, flag) in flags {
        let (them, us) = (theirs.get(name), export.flags.contains(flag));
        if them.and_then(Value::as_bool) != Some(us) {
            return fail(format!("nbdinfo: {name} is {them:?}, here {us}"));
        }
    }
    let sizes = ["minimum", "preferred", "maximum"].map(|which| {
        let name = format!("block_size_{which}");
        theirs.get(&name).and_then(Value::as_u64)
    });
    let ours = export.block_sizes.map(|s| {
        let sizes = [s.minimum, s.preferred, s.maximum];
        sizes.map(u64::from)
    });
    // nbdinfo shows none of them where the server tells none.
    if sizes.iter().any(Option::is_some) && Some(sizes) != ours.map(|sizes| sizes.map(Some)) {
        return fail(format!("nbdinfo: block sizes {sizes:?}, here {ours:?}"));
    }
    Ok(())
}

/// nbdcopy reads what our client reads.
pub fn same_bytes(server: &Server, found: &[u8]) -> Result<(), Stop> {
    let copy = server.file("copy");
    output("nbdcopy", &[&server.uri(), &copy.display().to_string()])?;
    match fs::read(&copy)? == found {
        true => Ok(()),
        false => Err(Stop::Fail("nbdcopy reads other bytes".to_owned())),
    }
}

/// Our client reads what nbdcopy wrote.
pub fn written_by_nbdcopy(server: &Server, export: &Export) -> Result<(), Stop> {
    let mut random = Random(export.size | 1);
    let mut bytes = vec![0; usize::try_from(export.size).expect("small")];
    // Zeroes in between, which nbdcopy writes as such.
    for block in bytes.chunks_mut(8192).step_by(2) {
        block.fill_with(|| random.below(256).to_le_bytes()[0]);
    }
    let from = server.file("from");
    fs::write(&from, &bytes)?;
    output(
        "nbdcopy",
        &["--flush", &from.display().to_string(), &server.uri()],
    )?;
    let (mut client, export) = Client::open(server.connect()?, options(server.export()))?;
    let found = whole(&mut client, &export);
    client.disconnect();
    match found == bytes {
        true => Ok(()),
        false => Err(Stop::Fail("not what nbdcopy wrote".to_owned())),
    }
}
