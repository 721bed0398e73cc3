"""The cluster files against the schemas of the tools that read them, without a network.

The KubeRay schema is not part of this repository (1.4 MB, it follows KubeRay's releases). The tests look for
`ray.io_rayjobs.yaml` in the directory named by LLMREC_KUBERAY_CRDS, then in `../shared/kuberay`; it comes from
`helm-chart/kuberay-operator/crds` of the KubeRay release in use.
"""

from __future__ import annotations

import copy
import fnmatch
import importlib.util
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
DOCKERFILE = REPO / "cluster" / "Dockerfile"
RAYJOB = REPO / "cluster" / "kuberay" / "rayjob.yaml"
SECRET = REPO / "cluster" / "kuberay" / "s3-secret.example.yaml"
CRON = REPO / "cluster" / "kuberay" / "raycronjob.yaml"
RAY_UP = REPO / "cluster" / "ray-up.yaml"
IMAGE = "ghcr.io/your-org/llmrec:0.1.0"
# The pure Python loader takes many times longer on the CRD.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), Loader=LOADER)


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD schema as JSON schema in which unknown fields are errors; Kubernetes itself would drop them silently."""
    out = dict(schema)
    if out.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if "properties" in out:
        out["properties"] = {name: strict(sub) for name, sub in out["properties"].items()}
        if not out.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    if isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = strict(out["additionalProperties"])
    if isinstance(out.get("items"), dict):
        out["items"] = strict(out["items"])
    return out


def errors(schema: dict[str, Any], document: Any) -> list[str]:
    """Every violation as 'path: message'."""
    validator = jsonschema.Draft7Validator(schema)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(document)]


@pytest.fixture(scope="module")
def rayjob_schema() -> dict[str, Any]:
    folder = Path(os.environ.get("LLMREC_KUBERAY_CRDS") or REPO.parent / "shared" / "kuberay")
    crd = folder / "ray.io_rayjobs.yaml"
    if not crd.is_file():
        pytest.skip(f"no KubeRay schema at {crd}; set LLMREC_KUBERAY_CRDS to a directory with ray.io_rayjobs.yaml")
    versions = {version["name"]: version for version in load(crd)["spec"]["versions"]}
    return strict(versions["v1"]["schema"]["openAPIV3Schema"])


@pytest.fixture(scope="module")
def ray_up_schema() -> dict[str, Any]:
    spec = importlib.util.find_spec("ray")  # found, not imported: only a file beside the code is wanted
    assert spec is not None and spec.submodule_search_locations
    return json.loads((Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    """A fresh copy: YAML anchors make parts of the loaded document one object, which a change would hit everywhere."""
    return json.loads(json.dumps(load(RAYJOB)))


@pytest.fixture
def ray_up() -> dict[str, Any]:
    return json.loads(json.dumps(load(RAY_UP)))


def pinned_ray(constraints: str) -> str:
    """The version of the line `ray==...`, with or without extras."""
    found = re.search(r"^ray(?:\[[^]]*])?==([^\s;#]+)", constraints, flags=re.MULTILINE)
    assert found, "constraints.txt pins no ray version"
    return found.group(1)


def dockerfile_instructions(text: str) -> list[str]:
    """The Dockerfile's instructions with continuation lines joined and the defaults of its ARGs filled in."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    instructions = [line.strip() for line in joined.splitlines() if line.strip()]
    for name, default in re.findall(r"^ARG (\w+)=(.*)$", joined, flags=re.MULTILINE):
        instructions = [line.replace("${" + name + "}", default.strip('"')) for line in instructions]
    return instructions


def copied(instructions: list[str]) -> list[str]:
    """What the COPY instructions take from the build context."""
    words = [line.split()[1:] for line in instructions if line.startswith("COPY ")]
    return [source for line in words for source in [word for word in line if not word.startswith("--")][:-1]]


def absent(sources: list[str], root: Path) -> list[str]:
    return [source for source in sources if not (root / source).exists()]


def pod_specs(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The Pod spec of every group of the RayJob."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"], **workers}


def ray_containers(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for group, spec in pod_specs(job).items():
        for container in spec["containers"]:
            yield f"{group}/{container['name']}", container


def unequal_resources(job: dict[str, Any]) -> list[str]:
    """Containers whose requests and limits differ, the autoscaler's included."""
    found = dict(ray_containers(job))
    found["autoscaler"] = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    sizes = {name: container.get("resources", {}) for name, container in found.items()}
    return [name for name, size in sizes.items() if not size.get("limits") or size.get("requests") != size["limits"]]


# The RayJob, and the RayCronJob around one


def test_the_cron_job_makes_the_same_job_but_of_the_pipeline(rayjob: dict[str, Any]) -> None:
    cron = load(CRON)
    assert (cron["apiVersion"], cron["kind"]) == ("ray.io/v1", "RayCronJob")
    assert set(cron["spec"]) == {"schedule", "jobTemplate"} and len(cron["spec"]["schedule"].split()) == 5
    made = json.loads(json.dumps(cron["spec"]["jobTemplate"]))
    script = shlex.split(made.pop("entrypoint"))[1]
    assert script == "jobs/pipeline.py" and (REPO / script).is_file()
    rayjob["spec"].pop("entrypoint")
    assert made | {"backoffLimit": rayjob["spec"]["backoffLimit"]} == rayjob["spec"]


def test_a_refusal_is_not_retried_and_a_day_ends_before_the_next_begins() -> None:
    """A RayCronJob has no concurrency policy; the deadline, which is per attempt, keeps two apart."""
    spec = load(CRON)["spec"]
    minute, hour, *every_day = spec["schedule"].split()
    assert every_day == ["*", "*", "*"] and minute.isdigit() and hour.isdigit()
    attempts = spec["jobTemplate"]["backoffLimit"] + 1
    assert attempts == 1, "exit code 3 would be refused again on another cluster"
    assert attempts * spec["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600


def test_rayjob_fits_the_kuberay_schema(rayjob: dict[str, Any], rayjob_schema: dict[str, Any]) -> None:
    assert rayjob["apiVersion"] == "ray.io/v1" and rayjob["kind"] == "RayJob"
    assert errors(rayjob_schema, rayjob) == []


def test_a_misspelt_field_is_caught(rayjob: dict[str, Any], rayjob_schema: dict[str, Any]) -> None:
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]
    head["rayStartParms"] = head.pop("rayStartParams")
    (error,) = errors(rayjob_schema, rayjob)
    assert error.startswith("spec/rayClusterSpec/headGroupSpec:") and "rayStartParms" in error


def test_a_misspelt_field_deep_in_a_worker_is_caught(rayjob: dict[str, Any], rayjob_schema: dict[str, Any]) -> None:
    worker = pod_specs(rayjob)["gpu"]["containers"][0]
    worker["envFrom"] = [{"secretReff": {"name": "llmrec-s3"}}]
    (error,) = errors(rayjob_schema, rayjob)
    assert "secretReff" in error


def test_a_wrong_type_is_caught(rayjob: dict[str, Any], rayjob_schema: dict[str, Any]) -> None:
    rayjob["spec"]["backoffLimit"] = "3"
    (error,) = errors(rayjob_schema, rayjob)
    assert error.startswith("spec/backoffLimit:") and "integer" in error


def test_rayjob_keeps_the_operators_own_rules(rayjob: dict[str, Any]) -> None:
    """KubeRay refuses these when it reconciles; its schema does not know them."""
    spec = rayjob["spec"]
    assert spec["submissionMode"] == "SidecarMode"
    assert not {"clusterSelector", "submitterPodTemplate", "submitterConfig"} & spec.keys()
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token" and spec["rayClusterSpec"]["rayVersion"]
    assert spec["rayClusterSpec"]["autoscalerOptions"]["version"] == "v2"
    assert {group: pod.get("restartPolicy", "Never") for group, pod in pod_specs(rayjob).items()} == dict.fromkeys(
        ["head", "cpu", "gpu"], "Never"
    )
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_head_takes_no_tasks_and_only_the_gpu_group_has_gpus(rayjob: dict[str, Any]) -> None:
    assert rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    limits = {name: container["resources"]["limits"] for name, container in ray_containers(rayjob)}
    assert [name for name, limit in limits.items() if "nvidia.com/gpu" in limit] == ["gpu/ray-worker"]


def test_requests_equal_limits_in_every_container(rayjob: dict[str, Any]) -> None:
    assert unequal_resources(rayjob) == []
    planted = copy.deepcopy(rayjob)
    pod_specs(planted)["cpu"]["containers"][0]["resources"]["requests"]["memory"] = "1Gi"
    assert unequal_resources(planted) == ["cpu/ray-worker"]
    del planted["spec"]["rayClusterSpec"]["autoscalerOptions"]["resources"]
    assert unequal_resources(planted) == ["cpu/ray-worker", "autoscaler"]


def test_every_container_gets_the_credentials_the_settings_and_shared_memory(rayjob: dict[str, Any]) -> None:
    secret = load(SECRET)
    assert all(name.startswith("AWS_") for name in secret["stringData"])
    for name, container in ray_containers(rayjob):
        assert container["image"] == IMAGE, name
        assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}], name
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        assert env["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0", name
        assert 0 < int(env["RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"]) < 1800, name
        # Nodes take minutes to come up, which is no progress.
        assert 300 < int(env["LLMREC_CLUSTER__NO_PROGRESS_SECONDS"]) < 1800, name
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"], name
    for group, pod in pod_specs(rayjob).items():
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
        assert volume["emptyDir"]["medium"] == "Memory", group


def test_example_secret_holds_placeholders_only() -> None:
    assert all("REPLACE_WITH_" in value for value in load(SECRET)["stringData"].values())


def test_entrypoint_names_a_job_of_this_repository(rayjob: dict[str, Any]) -> None:
    python, job, option, config = shlex.split(rayjob["spec"]["entrypoint"])
    assert (python, option) == ("python", "--config") and config.startswith("s3://")
    assert Path(job).parts[0] == "jobs" and (REPO / job).is_file()


# ray up


def test_ray_up_fits_rays_schema(ray_up: dict[str, Any], ray_up_schema: dict[str, Any]) -> None:
    assert errors(ray_up_schema, ray_up) == []


def test_an_unknown_key_of_ray_up_is_caught(ray_up: dict[str, Any], ray_up_schema: dict[str, Any]) -> None:
    ray_up["max_worker"] = ray_up.pop("max_workers")
    (error,) = errors(ray_up_schema, ray_up)
    assert "max_worker" in error


def test_ray_up_agrees_with_itself_and_with_the_rayjob(ray_up: dict[str, Any]) -> None:
    types = ray_up["available_node_types"]
    workers = {name: kind for name, kind in types.items() if name != ray_up["head_node_type"]}
    assert set(types) - set(workers) == {ray_up["head_node_type"]}
    assert all(kind["min_workers"] <= kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) == ray_up["max_workers"]
    assert types[ray_up["head_node_type"]]["resources"] == {"CPU": 0}
    assert ray_up["docker"]["image"] == IMAGE
    # Token and credentials are read from the directory that file_mounts brings.
    (mount,) = ray_up["file_mounts"]
    assert f"-e RAY_AUTH_TOKEN_PATH={mount}/auth_token" in ray_up["docker"]["run_options"]
    for commands in (ray_up["head_start_ray_commands"], ray_up["worker_start_ray_commands"]):
        assert f". {mount}/s3.env;" in commands[-1]


# The image


def test_image_rayjob_and_constraints_agree_on_ray(rayjob: dict[str, Any]) -> None:
    pinned = pinned_ray((REPO / "constraints.txt").read_text())
    (base,) = [line for line in dockerfile_instructions(DOCKERFILE.read_text()) if line.startswith("FROM ")]
    assert base.startswith(f"FROM rayproject/ray:{pinned}-py311")
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_ray_pin_is_read_from_its_own_line() -> None:
    text = "raydp==1.0\nxray==2\nray[data,train]==2.60.0  # why\n"
    assert pinned_ray(text) == "2.60.0"
    with pytest.raises(AssertionError, match="pins no ray"):
        pinned_ray("raydp==1.0\nray>=2\n")


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    sources = copied(dockerfile_instructions(DOCKERFILE.read_text()))
    assert {source.rstrip("/") for source in sources} >= {"pyproject.toml", "constraints.txt", "llmrec", "jobs"}
    assert absent(sources, REPO) == []
    kept = [line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert [s for s in sources if not any(fnmatch.fnmatch(s.rstrip("/"), pattern) for pattern in kept)] == []


def test_a_copy_of_a_missing_file_is_caught() -> None:
    text = DOCKERFILE.read_text() + "\nARG EXTRA=no_such_file.txt\nCOPY --chown=1000:100 ${EXTRA} \\\n  jobs/ ./\n"
    assert "no_such_file.txt" in absent(copied(dockerfile_instructions(text)), REPO)


def test_image_has_the_files_the_project_needs_to_build() -> None:
    """pip reads the readme named in pyproject.toml, and fails in the image when it was not copied."""
    readme = tomllib.loads((REPO / "pyproject.toml").read_text())["project"].get("readme", "")
    name = readme if isinstance(readme, str) else readme.get("file", "")
    assert not name or name in copied(dockerfile_instructions(DOCKERFILE.read_text()))


def test_image_stays_user_ray_and_leaves_the_start_command_to_the_cluster() -> None:
    instructions = dockerfile_instructions(DOCKERFILE.read_text())
    assert {line.split()[0] for line in instructions} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN"}
    assert "WORKDIR /home/ray/llmrec" in instructions
