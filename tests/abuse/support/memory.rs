//! The memory that a test takes.

use std::process::Command;

use allocation_counter::measure;

/// Set in a process that runs one test alone.
const ALONE: &str = "TOWER_IDEMPOTENCY_TEST_ALONE";

/// The most bytes that `test` held at a time, on one thread.
///
/// In a process where the test named `name` runs alone, for moka frees what one thread has
/// let go on whichever thread comes by. `None` in the process that waits for it.
pub(crate) fn peak(name: &str, test: impl AsyncFnOnce()) -> Option<usize> {
    if std::env::var_os(ALONE).is_none() {
        let this = std::env::current_exe().expect("it runs");
        let alone = Command::new(this)
            .args(["--exact", name, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .expect("it runs again");
        let said = String::from_utf8_lossy(&alone.stdout);
        println!("{said}{}", String::from_utf8_lossy(&alone.stderr));
        assert!(
            alone.status.success() && said.contains("1 passed"),
            "{name}"
        );
        return None;
    }
    let memory = measure(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        runtime.block_on(test());
    });
    println!("bytes held at most: {}", memory.bytes_max);
    Some(usize::try_from(memory.bytes_max).expect("it fits"))
}
