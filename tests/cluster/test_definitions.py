"""Cluster definitions, as far as a machine without docker and Kubernetes can try them: schemas, and that they say what the docs say."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "cluster"
KUBERAY = sorted((FOLDER / "kuberay").glob("*.yaml"))
SCHEMA = json.loads(Path(__file__).with_name("kuberay_schema.json").read_text())


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def templates(definition: Any) -> list[Any]:
    spec = definition["spec"].get("rayClusterSpec", definition["spec"])
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def unknown_fields(value: Any, kind: str, at: str = "template") -> list[str]:
    """Keys that kubernetes' own model of `kind` does not have; values of the wrong kind."""
    import kubernetes.client as client

    if kind.lower().startswith("list["):
        if not isinstance(value, list):
            return [f"{at} is no list"]
        return [found for n, item in enumerate(value) for found in unknown_fields(item, kind[5:-1], f"{at}[{n}]")]
    model = getattr(client, kind, None)
    if model is None:  # str, int, dict(str, str), …
        wanted = {"str": str, "int": int, "bool": bool}.get(kind)
        return [f"{at}: {value!r} is no {kind}"] if wanted and not isinstance(value, wanted) else []
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    found = [f"{at}.{key}" for key in value if key not in names]
    return found + [
        f for key, inner in value.items() if key in names for f in unknown_fields(inner, model.openapi_types[names[key]], f"{at}.{key}")
    ]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_definitions_are_valid(path: Path) -> None:
    definition = read(path)
    jsonschema.validate(definition, SCHEMA)
    for template in templates(definition):
        assert unknown_fields(template, "V1PodTemplateSpec") == []


def test_a_wrong_definition_is_seen() -> None:
    """The twins: a misspelt field of KubeRay's, one of Kubernetes', a number for a text."""
    good = read(KUBERAY[0])
    spec = good["spec"]
    for change in ({"authOption": {}}, {"authOptions": {"mode": "tokens"}}, {"rayVersion": 2.6}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, "spec": {**spec, **change}}, SCHEMA)
    template = copy.deepcopy(templates(good)[0])
    template["spec"]["containers"][0]["volumeMount"] = []
    template["spec"]["containers"][0]["image"] = 7
    assert set(unknown_fields(template, "V1PodTemplateSpec")) == {
        "template.spec.containers[0].volumeMount",
        "template.spec.containers[0].image: 7 is no str",
    }


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_definitions_say_what_matters(path: Path) -> None:
    """A token, the Ray of the lock, shared storage and memory in every pod, no secret's value, GPUs that Ray is told of."""
    definition = read(path)
    spec = definition["spec"].get("rayClusterSpec", definition["spec"])
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}" in re.sub(r"ray\[[^]]*\]", "ray", (ROOT / "pyproject.toml").read_text())
    for template in templates(definition):
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/shared", "/dev/shm"} <= mounts
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in template["spec"]["volumes"]}
        assert all(re.fullmatch(r".*(_PATH|PATH|IFNAME)", variable["name"]) for variable in container["env"])
        assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == group["rayStartParams"]["num-gpus"] == "8"


def test_the_job_trains_what_is_in_the_image() -> None:
    """Its command names an experiment that exists, after preflight; the code's place is on every pod's path."""
    definition = read(FOLDER / "kuberay" / "rayjob.yaml")
    command = definition["spec"]["entrypoint"]
    named = re.findall(r"experiments/\S+\.yaml", command)
    assert len(set(named)) == 1 and (ROOT / named[0]).is_file()
    assert command.index("cluster preflight") < command.index("-m trainer") and "runs=/shared/" in command
    for template in templates(definition):
        assert {"name": "PYTHONPATH", "value": "/opt/studyhall/src"} in template["spec"]["containers"][0]["env"]
    assert int(yaml.safe_load(definition["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 600


def test_the_launcher_definition_is_valid() -> None:
    """Against the schema that Ray ships with its launcher, and Ray's own further checks."""
    import ray
    from ray.autoscaler._private.util import fillout_defaults

    definition = read(FOLDER / "aws_a100.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(definition, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**definition, "max_worker": 2}, schema)
    assert definition["head_node_type"] in definition["available_node_types"]
    starts = [*definition["head_start_ray_commands"], *definition["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert any(target.endswith(".ray/auth_token") for target in definition["file_mounts"])
    assert any("--shm-size" in option for option in definition["docker"]["run_options"])
    assert "--gpus=all" not in definition["docker"]["run_options"], "the head has none"
    filled = fillout_defaults(definition)  # as `ray up` does: it would install a wheel of its own
    assert not [
        line for kind in ("setup_commands", "worker_setup_commands", "head_setup_commands") for line in filled[kind] if "ray-" in line
    ]
    assert all(line.startswith("export PATH=/opt/studyhall/.venv/bin:$PATH") for line in starts if "ray st" in line), (
        "a login shell forgets the image's"
    )


def test_the_image() -> None:
    """Built from the lock as set-up does, no root, no secret, no floating tag; what it copies exists and what it needs is not ignored."""
    text = (FOLDER / "Dockerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert re.fullmatch(r"FROM python:3\.11[\w.-]+", lines[0])
    assert "requirements/install.sh ${KIND}" in text and lines[-2] == "USER ray"
    assert not re.search(r"(ENV|ARG).*(TOKEN|SECRET|PASSWORD)=", text)
    for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
        assert (ROOT / source).exists()
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert ".git" in ignored and ".venv" in ignored and "runs" in ignored and "requirements" not in ignored
    assert "wget" in text, "KubeRay's probes call it"
