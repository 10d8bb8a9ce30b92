//! `start` and its answers: flags, stdin, address, and what it refuses.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::Options;
use vigil_lab::bundle::Stdio;
use vigil_lab::shim::{Dialect, Form, parse_reply, run};
use vigil_lab::task::any;
use vigil_lab::{Kit, Residue, Shim, Spec, by, until};

use crate::behaviour::in_status;

crate::behaviours! {
    "§1.5 start prints an address, whole, and nothing else; the shim answers there." start_announces_an_address;
    "§5 The socket is /run/containerd/s/<sha256 of address, namespace, id>, mode 0600." socket_path_and_mode;
    "§0.2 <bundle>/address is written." address_file;
    "§1.3 A child that inherits stdout blocks containerd: start's output ends though the shim lives." start_ends_its_output;
    "§1.7 The server is in no process group of containerd's; SIGHUP and SIGPIPE do not kill it." signals_do_not_kill;
    "§1.4 Options as an Any on stdin are taken." options_on_stdin;
    "§1.5 2.3+: BootstrapParams on stdin are answered with a BootstrapResult." bootstrap_params;
    "§1.5 1.7 and 2.x environment: an answer they all accept." newer_environment;
    "§5 A second start for an id whose shim lives prints the same address." second_start_same_address;
    "§5 A second start for an id whose shim lives harms nothing." second_start_harms_nothing;
    "§1.1 An empty namespace is an error." empty_namespace;
    "§1.1 -v prints a version, exit 0." version_flag;
    "§1.8 -info prints a RuntimeInfo." info_flag;
    "§2 Ids: start refuses what could leave its directory." hostile_ids;
    "§1.4 Garbage on stdin is an error, and starts nothing." garbage_on_stdin;
    "§6 BinaryName of a runc that is not there: Create names it." runc_missing;
    "§6 A wrong type of options is refused." options_of_a_wrong_type;
}

fn start_announces_an_address(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let shim = kit.shim(&bundle)?;
    ensure!(shim.task.connect_task(&shim.id)?.shim_pid > 1);
    Ok(())
}

fn socket_path_and_mode(kit: &Kit) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let shim = kit.shim(&bundle)?;
    let expected = vigil_lab::containerd::socket_of(&kit.caller.grpc, kit.scratch.mark(), &shim.id);
    ensure!(
        shim.reply.socket == expected,
        "{} is not {}",
        shim.reply.socket.display(),
        expected.display()
    );
    let meta = fs::metadata(&expected)?;
    ensure!(
        meta.file_type().is_socket() && meta.permissions().mode() & 0o777 == 0o600,
        "{meta:?}"
    );
    Ok(())
}

fn address_file(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let shim = kit.shim(&bundle)?;
    let written = fs::read_to_string(bundle.dir.join("address"))?;
    ensure!(
        written.trim() == format!("unix://{}", shim.reply.socket.display()),
        "{written:?}"
    );
    Ok(())
}

fn start_ends_its_output(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    // `shim` reads to the end of the output; had the server kept it, the time would be up.
    let shim = kit.shim(&bundle)?;
    ensure!(shim.reply.took.as_secs() < 5, "{:?}", shim.reply.took);
    ensure!(!shim.processes().is_empty(), "no shim process is left");
    Ok(())
}

fn signals_do_not_kill(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    let before = c.shim.processes();
    for signal in [13, 10] {
        for p in &before {
            vigil_lab::process::signal_if(p.pid, signal, |now| now.cmdline == p.cmdline);
        }
    }
    ensure!(c.task().patient(3.0).state(&c.id, "")?.pid == c.pid);
    ensure!(c.shim.processes().len() == before.len(), "{before:?}");
    Ok(())
}

fn options(options: &Options) -> Result<Vec<u8>> {
    Ok(any("containerd.runc.v1.Options", options.write_to_bytes()?).write_to_bytes()?)
}

fn options_on_stdin(kit: &Kit) -> Result<()> {
    let root = kit.scratch.path("runc-root");
    let chosen = Options {
        root: root.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let mut caller = kit.caller.clone();
    caller.options = options(&chosen)?;
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    kit.read_all(&bundle)?;
    let mut request = bundle.create_request();
    request.options = Some(any("containerd.runc.v1.Options", chosen.write_to_bytes()?)).into();
    shim.task.create(&request)?;
    let state = root
        .join(kit.scratch.mark())
        .join(&shim.id)
        .join("state.json");
    ensure!(
        state.exists(),
        "runc's state is not below the given root: {}",
        state.display()
    );
    Ok(())
}

fn bootstrap_params(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let mut caller = kit.caller.clone();
    caller.dialect = Dialect::V2_3;
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    ensure!(
        shim.reply.form == Form::Protobuf,
        "answered {:?}",
        shim.reply.form
    );
    ensure!(shim.task.connect_task(&shim.id)?.shim_pid > 1);
    Ok(())
}

fn newer_environment(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let mut caller = kit.caller.clone();
    caller.dialect = Dialect::V2_1;
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    // §0: 1.7 rejects JSON with version 3; everybody takes the plain address.
    ensure!(
        shim.reply.form == Form::Plain,
        "answered {:?} {}",
        shim.reply.form,
        shim.reply.version
    );
    Ok(())
}

fn second_start_same_address(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let again = kit.caller.run_start(&c.id, &c.bundle.dir)?;
    ensure!(
        again.status.success(),
        "{}: {}",
        again.status,
        String::from_utf8_lossy(&again.stdout)
    );
    let (address, ..) = parse_reply(&again.stdout)?;
    ensure!(
        address == format!("unix://{}", c.shim.reply.socket.display()),
        "{address}"
    );
    Ok(())
}

fn second_start_harms_nothing(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let before = c.shim.processes().len();
    let _ = kit.caller.run_start(&c.id, &c.bundle.dir)?;
    ensure!(in_status(&c, "", Status::RUNNING)?.pid == c.pid);
    until("no further shim", by(3.0), || {
        (c.shim.processes().len() == before).then_some(())
    })
}

/// Runs the bare binary with these arguments.
fn bare(kit: &Kit, args: &[&str], cwd: &Path) -> Result<vigil_lab::shim::Ran> {
    let mut command = Command::new(&kit.binary.path);
    command
        .args(args)
        .current_dir(cwd)
        .env("TTRPC_ADDRESS", kit.sink.address());
    run(&mut command, &[], false, by(10.0))
}

fn empty_namespace(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let ran = bare(
        kit,
        &["-id", &bundle.id, "-address", "/nowhere", "start"],
        &bundle.dir,
    )?;
    ensure!(
        !ran.status.success(),
        "exit 0: {}",
        String::from_utf8_lossy(&ran.stdout)
    );
    ensure!(!ran.stderr.is_empty(), "no words on stderr");
    Ok(())
}

fn version_flag(kit: &Kit) -> Result<()> {
    let ran = bare(kit, &["-v"], kit.scratch.dir())?;
    ensure!(ran.status.success() && !ran.stdout.is_empty(), "{ran:?}");
    Ok(())
}

fn info_flag(kit: &Kit) -> Result<()> {
    let ran = bare(kit, &["-info"], kit.scratch.dir())?;
    ensure!(
        ran.status.success(),
        "{}: {}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    );
    // RuntimeInfo.name = 1, a string: the name of the runtime.
    ensure!(
        ran.stdout.first() == Some(&0x0a),
        "no name first: {:?}",
        &ran.stdout[..ran.stdout.len().min(20)]
    );
    let text = String::from_utf8_lossy(&ran.stdout);
    ensure!(
        text.contains("ociVersionMax") || text.contains("ociVersionMin"),
        "no runc features: {text}"
    );
    Ok(())
}

fn hostile_ids(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let before = Residue::marked(kit.scratch.mark());
    let long = "x".repeat(77);
    for id in ["../../escape", "a/b", "..", long.as_str()] {
        let ran = kit.caller.run_start(id, &bundle.dir)?;
        if let Ok((address, ..)) = parse_reply(&ran.stdout) {
            let _ = fs::remove_file(address.trim_start_matches("unix://"));
        }
        ensure!(
            !ran.status.success(),
            "{id:?}: exit 0: {}",
            String::from_utf8_lossy(&ran.stdout)
        );
    }
    let new = Residue::marked(kit.scratch.mark()).since(&before);
    ensure!(new.is_empty(), "left {new:?}");
    fs::remove_dir_all(&bundle.dir)?;
    Ok(())
}

fn garbage_on_stdin(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let ran = kit
        .caller
        .run_start_with(&bundle.id, &bundle.dir, &[0xff; 200])?;
    // Wherever it stopped, the machine shall not keep its socket.
    let socket = vigil_lab::containerd::socket_of(&kit.caller.grpc, kit.scratch.mark(), &bundle.id);
    let bound = socket.exists();
    let _ = fs::remove_file(&socket);
    ensure!(
        !ran.status.success(),
        "exit 0: {}",
        String::from_utf8_lossy(&ran.stdout)
    );
    ensure!(!ran.stdout.is_empty(), "no words");
    ensure!(!bound, "failed, and left {}", socket.display());
    let none = || {
        vigil_lab::process::Process::marked(kit.scratch.mark())
            .is_empty()
            .then_some(())
    };
    until("no shim to be left of a failed start", by(3.0), none)
}

fn runc_missing(kit: &Kit) -> Result<()> {
    let chosen = Options {
        binary_name: "/no/such/runc".into(),
        ..Default::default()
    };
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = c.bundle.create_request();
    request.options = Some(any("containerd.runc.v1.Options", chosen.write_to_bytes()?)).into();
    let Err(error) = c.task().create(&request) else {
        anyhow::bail!("created without runc")
    };
    ensure!(
        error.to_string().contains("/no/such/runc"),
        "an error that does not name it: {error}"
    );
    until("the rootfs to be unmounted", by(3.0), || {
        let rootfs = c.bundle.dir.join("rootfs").to_string_lossy().into_owned();
        (!vigil_lab::residue::mount_points().contains(&rootfs)).then_some(())
    })
}

fn options_of_a_wrong_type(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = c.bundle.create_request();
    request.options = Some(any("containerd.runc.v1.CheckpointOptions", vec![8, 1])).into();
    crate::behaviour::refused(
        c.task().create(&request),
        vigil_lab::Code::InvalidArgument,
        "Create",
    )
}
