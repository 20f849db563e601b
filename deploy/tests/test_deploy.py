"""Dashboards and rules, against a real Prometheus that scrapes a real cluster under load.

Wants KELVIN_BIN (the binary), prometheus and promtool on the PATH; nothing beyond Python's own library. A query has
passed once it gave data: rates need two scrapes, so each is asked until then, for two minutes at most.
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request

DEPLOY = pathlib.Path(__file__).parent.parent
KELVIN = os.environ.get("KELVIN_BIN", "kelvin")
PATIENCE_S = 120
# A cluster that is well does not show it; the panel has a zero in its place.
FIRST_WITH_AN_ERROR = {"kelvin_router_errors_total"}
# In place of what Grafana fills in.
VARIABLES = {"$__rate_interval": "15s", "$tenant": ".*", "$model": ".*"}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def until(what, holds):
    """What `holds` gives as soon as it is something."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"it never came: {what}")
        time.sleep(0.25)


def is_known(sample):
    """Whether a sample is a number: a quantile of nothing is none, and draws nothing."""
    return not math.isnan(float(sample["value"][1]))


def clean_environment():
    return {key: value for key, value in os.environ.items() if not key.startswith(("KELVIN_", "OTEL_"))}


def names_in(text):
    """Names of Kelvin's own metrics in an expression, as they are scraped."""
    return set(re.findall(r"\bkelvin_\w+", text))


def dashboards():
    return [json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana/json").glob("*.json"))]


def queries():
    """Dashboard, panel and expression of each line that is drawn."""
    for dashboard in dashboards():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                yield dashboard["title"], panel["title"], expression


class Cluster:
    """A cluster with all tiers, a router before its router, Prometheus, and a client that keeps them busy."""

    def __init__(self):
        self.children = []
        self.logs = []
        self.dir = tempfile.mkdtemp(prefix="kelvin-deploy-")
        self.stop_load = threading.Event()
        self.answers = 0
        self.load = threading.Thread(target=self.keep_busy)

    def start(self):
        here = pathlib.Path(self.dir)
        for name in ("nvme", "object", "run"):
            (here / name).mkdir()
        up = self.child(
            *("up", "--model", "toy", "--json", "--listen", "127.0.0.1:0", "--run-dir", here / "run"),
            *("--dram", "512KiB", "--data", here / "data", "--nvme", f"{here / 'nvme'}=64MiB"),
            *("--object", here / "object"),
        )
        self.url = f"http://{up['listen']}"
        self.store_admin = up["store_admin"]
        self.router_admin = up["router_admin"]
        listen = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        front = self.child("router", *listen, "--backend", self.url)
        self.front = f"http://{front['listen']}"
        self.front_admin = f"http://{front['admin']}"
        self.load.start()
        self.start_prometheus(here)

    def child(self, *arguments):
        """A Kelvin that said that it is ready, and what it said."""
        command = [KELVIN, *map(str, arguments)]
        log = self.log(arguments[0])
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=clean_environment())
        self.children.append(process)
        line = process.stdout.readline()
        if not line:
            process.wait()
            log.seek(0)
            raise AssertionError(f"{command} did not start: {log.read()}")
        return json.loads(line)

    def log(self, name):
        self.logs.append(open(pathlib.Path(self.dir) / f"{name}.log", "w+"))
        return self.logs[-1]

    def start_prometheus(self, here):
        self.prometheus = f"http://127.0.0.1:{free_port()}"
        targets = {
            "kelvin-router": [self.router_admin, self.front_admin],
            "kelvin-store": [self.store_admin],
        }
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(DEPLOY / "prometheus/kelvin.rules.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [url.removeprefix("http://") for url in urls]}]}
                for job, urls in targets.items()
            ],
        }
        # JSON is YAML.
        (here / "prometheus.yml").write_text(json.dumps(config))
        log = self.log("prometheus")
        command = ["prometheus", f"--config.file={here / 'prometheus.yml'}", f"--storage.tsdb.path={here / 'tsdb'}"]
        command.append(f"--web.listen-address={self.prometheus.removeprefix('http://')}")
        self.children.append(subprocess.Popen(command, stdout=log, stderr=log))
        until("three targets that are scraped", lambda: len(self.ask("up == 1")) == 3)

    def ask(self, expression):
        """Samples of an instant query; none while Prometheus starts."""
        try:
            text = get(f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return []
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        except OSError:
            return []
        answer = json.loads(text)
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def keep_busy(self):
        """Prompts that repeat, after more others than memory has room for."""
        turn = 0
        while not self.stop_load.is_set():
            prompt = f"{turn % 24:04} " * 120
            body = {"model": "toy", "prompt": prompt, "max_tokens": 8, "temperature": 0}
            if turn % 2:
                # Of streams alone it is known when the first token of another engine came.
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            for url in (self.url, self.front):
                try:
                    post(f"{url}/v1/completions", body)
                    self.answers += 1
                except OSError:
                    # While it starts; a cluster that answers nothing fails the tests below.
                    time.sleep(0.1)
            turn += 1

    def stop(self):
        self.stop_load.set()
        if self.load.ident:
            self.load.join()
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
            child.wait(timeout=60)
            if child.stdout:
                child.stdout.close()
        for log in self.logs:
            log.close()
        shutil.rmtree(self.dir)


class Files(unittest.TestCase):
    """What needs no cluster."""

    def test_dashboards_are_current(self):
        command = [sys.executable, str(DEPLOY / "grafana/build.py"), "--check"]
        checked = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked.stderr)

    def test_dashboards_can_be_read(self):
        found = dashboards()
        self.assertEqual(len({each["uid"] for each in found}), 5)
        for dashboard in found:
            ids = [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(ids), len(set(ids)), dashboard["title"])
            taken = set()
            for panel in dashboard["panels"]:
                place = panel["gridPos"]
                cells = {
                    (x, y)
                    for x in range(place["x"], place["x"] + place["w"])
                    for y in range(place["y"], place["y"] + place["h"])
                }
                self.assertFalse(cells & taken, f"{dashboard['title']}: {panel['title']} lies over another one")
                self.assertLessEqual(place["x"] + place["w"], 24)
                taken |= cells

    def test_rules(self):
        for command in (["check", "rules", "kelvin.rules.yml"], ["test", "rules", "kelvin.rules.test.yml"]):
            ran = subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
            self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)

    def test_every_alert_is_tested(self):
        alert = re.compile(r"alert: (\w+)")
        rules = set(alert.findall((DEPLOY / "prometheus/kelvin.rules.yml").read_text()))
        tested = re.compile(r"alertname: (\w+)").findall((DEPLOY / "prometheus/kelvin.rules.test.yml").read_text())
        # Each has a case where it fires and one where it does not.
        self.assertEqual({name for name in rules if tested.count(name) < 2}, set())


class UnderLoad(unittest.TestCase):
    """Every query against a real Prometheus."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.stop)
        cls.cluster.start()

    def test_every_panel_has_data(self):
        asked = list(queries())
        self.assertGreater(len(asked), 100)
        empty = dict.fromkeys(asked)
        deadline = time.monotonic() + PATIENCE_S
        while empty and time.monotonic() < deadline:
            for each in list(empty):
                if any(is_known(sample) for sample in self.cluster.ask(each[2])):
                    del empty[each]
            time.sleep(0.25 if empty else 0)
        self.assertEqual(sorted(empty), [])

    def test_every_metric_exists(self):
        rules = (DEPLOY / "prometheus/kelvin.rules.yml").read_text()
        named = names_in(rules) | set().union(*(names_in(expression) for _, _, expression in queries()))

        def missing():
            described = set(FIRST_WITH_AN_ERROR)
            for page in (self.cluster.router_admin, self.cluster.front_admin, self.cluster.store_admin):
                for family in re.findall(r"^# TYPE (\w+)", get(f"{page}/metrics"), re.MULTILINE):
                    described |= {family, *(f"{family}_{end}" for end in ("total", "bucket", "sum", "count"))}
            return named - described

        # The ghosts want some requests first.
        until(f"the metrics {missing()}", lambda: not missing())

    def test_every_rule_is_evaluated(self):
        def rules():
            groups = json.loads(get(f"{self.cluster.prometheus}/api/v1/rules"))["data"]["groups"]
            found = [rule for group in groups for rule in group["rules"]]
            return found if found and all(rule["health"] != "unknown" for rule in found) else None

        found = until("rules that were evaluated", rules)
        self.assertEqual([rule for rule in found if rule["health"] != "ok"], [])
        firing = [rule["name"] for rule in found if rule.get("state") == "firing"]
        self.assertEqual(firing, [], "a cluster that is well wakes nobody")
        recorded = [rule["name"] for rule in found if rule["type"] == "recording"]
        for name in recorded:
            until(name, lambda name=name: any(map(is_known, self.cluster.ask(name))))

    def test_the_load_was_answered(self):
        until("answers", lambda: self.cluster.answers > 10)


if __name__ == "__main__":
    unittest.main()
