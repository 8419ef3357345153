//! `make generations`, small. The faults of the other designs depend on chance: the command itself reports when one does not
//! show.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value as Json;

use crate::{bench::assert_nothing_left, harness::scratch_dir};

const SITUATIONS: [&str; 4] = ["flash_sale", "key_expires", "plenty", "postgres_down"];

#[tokio::test(flavor = "multi_thread")]
async fn generations_show_that_this_program_neither_oversells_nor_loses() {
    let (servers, out) = (scratch_dir("generations-servers"), scratch_dir("generations-reports"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(root.join("target/debug/examples/generations"));
    let sizes = "--buyers 50 --units 20 --attempts 500 --seconds 1 --rate 50";
    command.args(sizes.split(' ')).arg("--out").arg(&out).env("TMPDIR", &servers);
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let log = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let report = fs::read_to_string(out.join("report.json"));
    let report: Json = serde_json::from_str(&report.unwrap_or_else(|_| panic!("{log}"))).unwrap();
    assert_nothing_left(&servers);
    let designs = report["designs"].as_array().unwrap();
    assert_eq!(designs.len(), 5);
    for design in designs {
        for situation in SITUATIONS {
            assert!(design[situation]["accepted"].as_u64() > Some(0), "{situation}: {design}");
        }
    }
    let this_program = &designs[4];
    for situation in SITUATIONS {
        for count in ["oversold", "accepted_lost", "units_lost"] {
            assert_eq!(this_program[situation][count], 0, "{situation} {count}: {this_program}");
        }
    }
    assert_eq!(this_program["flash_sale"]["orders"], 20);
    for plot in ["oversold.svg", "rates.svg", "postgres-down.svg"] {
        let svg = fs::read_to_string(out.join(plot)).unwrap();
        assert!(svg.contains("5 this program") && svg.ends_with("</svg>\n"), "{plot}: {svg}");
    }
}
