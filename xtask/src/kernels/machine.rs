//! A virtual machine that runs `guest.sh` and nothing else, in QEMU without hardware help: a boot takes five
//! seconds, so it needs no disk, no network and no modules.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build_ebpf, toolchain};

const GUEST: &str = include_str!("guest.sh");
const ATTEMPTS: &str = "xtask/src/kernels/attempts.c";
/// Ten times what a boot takes on two busy cores.
const DEADLINE: Duration = Duration::from_secs(120);
const TRIES: u32 = 4;
/// Of `guest.sh`.
const LAST_STEP: &str = "unload";
/// Five-level page tables only make emulation slower.
const CPU: &str = "max,la57=off";
/// Holds the initramfs twice, packed and unpacked.
const MEMORY_MIB: &str = "1024";

/// What one step of `guest.sh` printed, and how it ended.
#[derive(Debug)]
pub struct Step {
    pub name: String,
    pub output: String,
    pub code: i32,
}

/// Packs `sluice` with its libraries, busybox and the script into an initramfs.
pub fn initramfs() -> Result<PathBuf> {
    let work = build_ebpf::target_folder().join("kernels");
    let root = work.join("root");
    let _ = fs::remove_dir_all(&root);
    for folder in [
        "bin",
        "dev",
        "etc/sluice/policies",
        "proc",
        "run",
        "sys",
        "tmp",
        "var/lib",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    fs::write(root.join("etc/sluice/sluice.toml"), "")?;
    fs::copy(
        build_ebpf::workspace().join("policies/read-only.cedar"),
        root.join("etc/sluice/policies/read-only.cedar"),
    )?;
    fs::write(root.join("init"), GUEST)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("copying /bin/busybox")?;
    symlink("busybox", root.join("bin/sh"))?;

    let sluice = build_ebpf::target_folder().join("debug/sluice");
    for library in libraries(&sluice)? {
        let place = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(place.parent().context("a library is in a folder")?)?;
        fs::copy(&library, &place).with_context(|| format!("copying {}", library.display()))?;
    }
    // A third of the size, and so of the time to unpack it.
    toolchain::run_quietly(
        Command::new("strip")
            .arg(&sluice)
            .arg("-o")
            .arg(root.join("bin/sluice")),
    )?;
    let attempts = build_ebpf::workspace().join(ATTEMPTS);
    let flags = ["-static", "-O1", "-Wall", "-o"];
    toolchain::run_quietly(
        Command::new("cc")
            .args(flags)
            .arg(root.join("bin/attempts"))
            .arg(attempts),
    )?;

    let image = work.join("initramfs");
    let pack = "find . | busybox cpio -o -H newc > ../initramfs";
    toolchain::run_quietly(Command::new("sh").args(["-c", pack]).current_dir(&root))?;
    Ok(image)
}

/// What `ldd` says the program is started with, the loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = toolchain::output(Command::new("ldd").arg(program))
        .with_context(|| format!("ldd cannot read {}", program.display()))?;
    let words = listed.lines().flat_map(str::split_whitespace);
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// Boots a kernel with these security modules; the console's text stays in `log`.
///
/// A machine that dies gets another try: QEMU 7.2 sometimes gets the flags of cmpxchg16b wrong, which newer
/// kernels' allocators do not survive, and Linux 7 has no memory for socket storage without that instruction.
pub fn boot(kernel: &Path, initramfs: &Path, lsm: &str, log: &Path) -> Result<Vec<Step>> {
    for _ in 1..TRIES {
        let steps = boot_once(kernel, initramfs, lsm, log)?;
        if steps.last().is_some_and(|step| step.name == LAST_STEP) {
            return Ok(steps);
        }
    }
    boot_once(kernel, initramfs, lsm, log)
}

fn boot_once(kernel: &Path, initramfs: &Path, lsm: &str, log: &Path) -> Result<Vec<Step>> {
    let console = fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "pc,accel=tcg", "-cpu", CPU, "-m", MEMORY_MIB])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 lsm={lsm}"))
        .stdin(Stdio::null())
        .stderr(console.try_clone()?)
        .stdout(console);
    let mut machine = qemu.spawn().context("starting qemu-system-x86_64")?;
    let status = wait(&mut machine).with_context(|| log.display().to_string())?;
    let text = String::from_utf8_lossy(&fs::read(log)?).replace('\r', "");
    ensure!(
        status.success(),
        "qemu ended with {status}: {}",
        log.display()
    );
    steps(&text)
}

fn wait(machine: &mut Child) -> Result<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if let Some(status) = machine.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(100));
    }
    machine.kill()?;
    machine.wait()?;
    bail!("the machine still ran after {} s", DEADLINE.as_secs())
}

/// `@@ begin NAME`, the output, `@@ end NAME CODE`; none when the kernel never came so far.
fn steps(console: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut output = String::new();
    for line in console.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["@@", "begin", _] => output.clear(),
            ["@@", "end", name, code] => steps.push(Step {
                name: (*name).into(),
                output: output.trim().into(),
                code: code.parse().context("an exit code")?,
            }),
            _ => output = output + line + "\n",
        }
    }
    Ok(steps)
}
