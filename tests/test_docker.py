"""The image and the compose file, read but not built: Docker is not needed here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from distill.cli import COMMANDS, build_parser
from distill.serving.app import PATHS

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "serving" / "docker"
INSTALLED = "/usr/local/lib/python3.11/site-packages/distill/"


@pytest.fixture
def dockerfile():
    """The instructions of the Dockerfile: pairs of name and rest."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture
def compose():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


def parsed(command):
    """The command's arguments as its parser reads them; one that it does not know ends the test."""
    assert command[0] in COMMANDS
    return build_parser(command[0]).parse_args(command)


def of(dockerfile, name):
    return [rest for instruction, rest in dockerfile if instruction == name]


def test_images_are_pinned_and_of_one_python(dockerfile):
    images = [rest.split()[0] for rest in of(dockerfile, "FROM")]
    assert images and all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image) for image in images)
    assert len(set(images)) == 1 and f"python{'.'.join(images[0].split(':')[1].split('.')[:2])}/" in INSTALLED


def test_every_copied_file_is_there_and_let_through(dockerfile):
    rules = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert "*" in rules and all((ROOT / name).exists() for name in allowed)
    for rest in of(dockerfile, "COPY"):
        *sources, _ = shlex.split(rest)
        if not sources[0].startswith("--from="):
            assert all(source == "." or source in allowed for source in sources)
    # a wheel needs the rooms that distill/ links to, and what pyproject.toml names
    rooms = {path.name for path in (ROOT / "distill").iterdir() if path.is_symlink()}
    assert rooms | {"distill", "pyproject.toml", "setup.py", "README.md", "LICENSE"} <= allowed


def test_nobody_is_root_and_nothing_comes_from_elsewhere(dockerfile):
    assert of(dockerfile, "USER") == ["distill"] and "useradd" in " ".join(of(dockerfile, "RUN"))
    names = [name for name, _ in dockerfile]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    every = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir())
    assert not re.search(r"index-url|trusted-host|--find-links", every)
    addresses = set(re.findall(r"https?://([\w.-]+)", every))
    assert addresses == {"127.0.0.1"}


def test_the_extras_exist(dockerfile):
    tomllib = pytest.importorskip("tomllib", reason="Python is older than 3.11")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = re.search(r"\.whl\)\[([\w,]+)\]", " ".join(of(dockerfile, "RUN")))
    assert wanted and set(wanted[1].split(",")) <= set(known) and {"serve", "eval"} <= set(wanted[1].split(","))


def test_the_server_listens_where_the_health_check_asks(dockerfile):
    assert json.loads(of(dockerfile, "ENTRYPOINT")[0]) == ["distill"]
    args = parsed(json.loads(of(dockerfile, "CMD")[0]))
    check = json.loads(of(dockerfile, "HEALTHCHECK")[0].partition("CMD ")[2])
    asked = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check[2])
    compile(check[2], "healthcheck", "exec")
    assert asked and int(asked[1]) == args.port == int(of(dockerfile, "EXPOSE")[0])
    assert asked[2] in PATHS and args.host == "0.0.0.0"


def test_the_services_run_real_commands(compose):
    services = compose["services"]
    assert set(services) == {"server", "benchmark"}
    for service in services.values():
        context = (FOLDER / service["build"]["context"]).resolve()
        assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    server = parsed(services["server"]["command"])
    assert server.command == "serve" and services["server"]["ports"] == [f"127.0.0.1:{server.port}:{server.port}"]
    benchmark = parsed(services["benchmark"]["command"])
    assert (benchmark.command, benchmark.benchmark) == ("eval", "needle")
    for place in (benchmark.model, str(benchmark.data_path)):
        assert place.startswith(INSTALLED) and (ROOT / place.removeprefix(INSTALLED)).exists()
    volume, _, inside = services["benchmark"]["volumes"][0].partition(":")
    assert volume in compose["volumes"] and inside == str(benchmark.output)
    assert services["benchmark"]["healthcheck"] == {"disable": True}
