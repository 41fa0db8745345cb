"""The one command line: what each command does, what it says of wrong arguments, and what it can do without."""

import json
import subprocess
import sys

import pytest

from lkca.__main__ import EXAMPLES, main
from lkca.data import images as data
from lkca.ledger import records
from lkca.ledger.protocols import PROTOCOLS
from lkca.training import engine

ELSEWHERE = ["pandas", "matplotlib", "sklearn", "scipy", "IPython", "papermill", "nbformat", "tqdm.auto", "tqdm"]


def said(capsys, *arguments):
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    root = tmp_path_factory.mktemp("ledger")
    (run,) = engine.fit("ViT/0.5M-LKCA", data.load("digits"), PROTOCOLS["smoke"], results_root=root, progress=None)
    return root, run


def test_help_fits_a_screen_and_each_command_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 24
    for command, example in EXAMPLES.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert f"Example: {example}" in shown and example.startswith(f"lkca {command}")


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_example_can_be_parsed(command):
    from lkca.__main__ import _parser

    assert _parser().parse_args(EXAMPLES[command].split()[1:]).command.__name__ == command


def test_train_leaves_records_and_says_what_came_out(tmp_path, capsys):
    arguments = ["train", "--table", 2, "--rows", "ViT/0.5M-LKCA", "--protocol", "smoke", "--precision", "fp64"]
    status, out, _ = said(capsys, *arguments, "--results-root", tmp_path)
    (run,) = records.read(tmp_path / "scratch")[0]
    assert status == 0 and run.precision == "fp64" and f"{run.top1:.2f} top-1  fp64" in out
    assert (
        "1 of 1 runs to train" in out
        and "0 of 1 runs to train" in said(capsys, *arguments, "--results-root", tmp_path)[1]
    )


def test_work_lists_what_is_missing(tmp_path, capsys):
    status, out, _ = said(capsys, "work", "--list", "--results-root", tmp_path, "--seeds", 0, 7)
    assert status == 0 and out.splitlines()[0] == "tiny-imagenet released ViT seeds 0 7"


def test_data_says_what_it_found(tmp_path, capsys):
    status, out, _ = said(capsys, "data", "digits", "--data-root", tmp_path)
    assert status == 0 and "1,437 training and 360 test images, 8 x 8 pixels, 10 classes" in out
    assert data.DATASETS["digits"].fingerprint in out and "the known one" in out
    assert "cifar100       not there" in said(capsys, "data", "--data-root", tmp_path)[1]


def test_records_are_listed_checked_and_shown(ledger, capsys):
    root, run = ledger
    name = records.path_of(run, root).stem
    status, out, _ = said(capsys, "records", "--results-root", root)
    assert status == 0 and out.startswith(f"{name}  {run.top1:.2f} top-1")
    assert said(capsys, "records", "--check", "--results-root", root)[1].startswith("1 records in ")
    shown = said(capsys, "records", name, "--results-root", root)[1]
    assert f"data_fingerprint: {run.data_fingerprint}" in shown and f"git checkout {run.git_commit}" in shown
    assert shown == said(capsys, "records", records.path_of(run, root))[1]


def test_a_broken_record_is_named_and_hides_no_other(tmp_path, ledger, capsys):
    root, run = ledger
    fields = json.loads(records.path_of(run, root).read_text())
    for seed, change in ((0, {}), (1, {"top1": 101.0})):
        file = records.path_of(run, tmp_path).with_name(
            f"digits--ViT_0.5M-LKCA--smoke-{run.protocol_hash}--seed{seed}.json"
        )
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(fields | {"seed": seed} | change))
    for how in ([], ["--check"], ["--table", 2]):
        status, out, err = said(capsys, "records", *how, "--results-root", tmp_path)
        assert status == 1 and "seed1.json: top1 is 101.0 but the curve says" in err and out


@pytest.mark.parametrize("table", [2, 4, 6])
def test_a_table_is_set_beside_the_paper_s(tmp_path, capsys, table):
    status, out, _ = said(capsys, "records", "--table", table, "--results-root", tmp_path)
    assert status == 0 and "not run" in out
    assert {2: "76.50", 4: "97.68", 6: "LKCA-B"}[table] in out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["work", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["work", "--protocol", "fast"], "invalid choice: 'fast'"),
        (["work", "--protocol", "smoke"], "invalid choice: 'smoke'"),
        (["work", "--seeds", "-1"], "seed -1 is not a whole number from 0 up"),
        (["work", "--results-root", "/proc/none"], "name another folder with results_root"),
        (["train", "--table", "9"], "table 9 does not exist; the tables are 1, 2, 3"),
        (["train", "--table", "2", "--rows", "ResNet"], "row 'ResNet' is not in Table 2"),
        (["train", "--table", "2", "--precision", "int8"], "precision='int8' is not one of 'auto'"),
        (["bench", "--only", "nothing", "--device", "cpu"], "only='nothing' is not one of"),
        (["data", "cifar"], "cifar"),
        (["records", "--table", "8"], "table 8 does not exist; the tables are 1, 2, 3"),
        (["records", "no-such-run"], "no-such-run.json"),
    ],
)
def test_a_wrong_argument_is_said_in_a_sentence(arguments, says, capsys):
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert status == 2 and says in captured.err and "Traceback" not in captured.err


def test_unattended_work_needs_only_torch_torchvision_numpy_and_einops():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ELSEWHERE}))\n"
        "from lkca.__main__ import main\nsys.exit(main(['work', '--list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "released" in done.stdout


def test_no_command_imports_jupyter_or_a_plotting_library():
    commands = [["records", "--table", "2"], ["train", "--table", "9"]]
    code = (
        f"import sys; from lkca.__main__ import main; [main(arguments) for arguments in {commands}]\n"
        "print(*{'matplotlib', 'IPython', 'papermill', 'nbformat'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == ""
