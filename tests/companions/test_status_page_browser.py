"""The status page in a real Chromium: it shows what the server says and does what its buttons say."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from load import Load
from selenium import webdriver
from selenium.webdriver import ActionChains, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from server import Server, wait_until

from poolparty.stats.history import ERRORS

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-dev-shm-usage --disable-sync
    --window-size=1280,1400"""

READ_PAGE = """
const text = (node) => node.innerText.trim();
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const table = (id) => {
    const heads = all(`#${id} thead th`).map((head) => text(head).replace(/[↕↑↓]/g, "").trim());
    return all(`#${id} tbody tr`).map((row) =>
        Object.fromEntries(all("th,td", row).map((cell, index) => [heads[index], text(cell)])));
};
const shown = (id) => { const node = document.getElementById(id); return node.hidden ? null : text(node); };
return {
    title: document.title,
    state: shown("state"),
    command: shown("command"),
    figures: Object.fromEntries(all("#figures dd").map((node) => [node.id, text(node)])),
    pools: table("pools"),
    children: table("children"),
    server: table("server"),
    headings: all("#children thead button").map(text),
    sorted: all("#children thead th").map((head) => head.getAttribute("aria-sort")),
    events: all("#events li").map((node) => text(node.querySelector(".text"))),
    eventPools: all("#events li").map((node) => all(".pool", node).map(text).join()),
    charts: all("#charts svg.plot").map((node) => node.getAttribute("aria-label")),
    lines: all("#charts svg.plot > path.path").map((node) => node.getAttribute("d") || ""),
    buttons: all("button").filter((node) => node.offsetParent).map(text),
    connection: shown("connection"),
    restarting: shown("restarting"),
    poolsShown: !document.getElementById("pools-section").hidden,
    outcome: shown("outcome"),
    dialog: all("dialog[open]").map(text)[0] || null,
    focused: text(document.activeElement),
    wide: document.documentElement.scrollWidth - innerWidth,
};
"""


class Page:
    """What stands there, all of one moment; and its user's hands."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.wait(lambda page: page["children"], "workers on the page")

    def read(self) -> dict[str, Any]:
        page: dict[str, Any] = self.driver.execute_script(READ_PAGE)
        return page

    def wait(self, condition: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        """The page, once it is so."""

        def found() -> dict[str, Any] | None:
            page = self.read()
            return page if condition(page) else None

        page = wait_until(found, f"{what}; the page: {json.dumps(self.read(), ensure_ascii=False)}")
        assert page is not None
        return page

    def press(self, label: str, pid: int | None = None, pool: str | None = None) -> None:
        """A button that can be seen, in the row of a worker or of a pool if one is given."""
        where = "//body" if pid is None else f"//tr[@data-pid='{pid}']"
        where = where if pool is None else f"//tr[@data-name='{pool}']"
        buttons = self.driver.find_elements(By.XPATH, f"{where}//button[normalize-space()='{label}']")
        (seen,) = [button for button in buttons if button.is_displayed()]
        seen.click()

    def check_widths(self) -> None:
        """On a phone and on a desk nothing is wider than the screen."""
        for width, height in ((360, 740), (1280, 1400)):
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            self.wait(
                lambda shown, w=width: self.driver.execute_script("return innerWidth") == w, "its width"
            )
            assert self.read()["wide"] <= 0
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def rest(self) -> None:
        """Take the pointer and the focus away: rows under them do not move."""
        ActionChains(self.driver).move_to_element(self.driver.find_element(By.TAG_NAME, "h1")).perform()
        self.driver.execute_script("document.activeElement.blur()")

    def complaints(self) -> list[str]:
        """What the console has said since the last look."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(
    chromium: str, chromedriver: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[webdriver.Chrome]:
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    """At its end the console must have said nothing."""
    page = Page(driver)
    page.complaints()
    yield page
    assert page.complaints() == []


@contextlib.contextmanager
def served(page: Page, directory: Path, *options: str, **how: Any) -> Iterator[Server]:
    """A server that the page is left before it stops: its questions would be refused."""
    with Server(directory, "--admin-address", "127.0.0.1:0", *options, **how) as server:
        yield server
        page.driver.get("about:blank")


def admin(server: Server) -> str:
    return f"http://127.0.0.1:{server.admin_port}/"


def pids(page: dict[str, Any]) -> list[int]:
    return [int(row["PID"]) for row in page["children"]]


def number(text: str) -> float:
    """Of a cell such as `1,234` or `12.3 MiB`."""
    return float(text.split()[0].replace(",", ""))


def same(page: dict[str, Any], stats: dict[str, Any]) -> bool:
    """Whether the page shows these figures; what changes by itself (age, memory, CPU) may have gone on."""
    (pool,) = stats["pools"]
    figures = page["figures"]
    told = {name: pool[name] for name in ("busy", "idle", "booting", "workers", "queued")}
    children = {child["pid"]: child for child in pool["children"]}
    return (
        {name: number(figures[f"figure-{name}"]) for name in told} == told
        and figures["more-workers"] == f"target {pool['target']}, from {pool['min']} to {pool['max']}"
        and number(figures["more-requests"]) == pool["requests"]
        and {int(row["PID"]): (row["State"], number(row["Requests"])) for row in page["children"]}
        == {pid: (child["state"], child["requests"]) for pid, child in children.items()}
        and all(
            abs(number(row["Memory"].split("\n")[-1]) - children[int(row["PID"])]["rss"] / 2**20) < 1
            for row in page["children"]
        )
        and {int(row["PID"]): number(row["Requests"]) for row in page["server"] if row["Requests"] != "–"}
        == {worker["pid"]: worker["requests"] for worker in stats["http_workers"]}
        and {int(row["PID"]) for row in page["server"]} - {stats["arbiter"]["pid"]}
        == {worker["pid"] for worker in stats["http_workers"]}
        and page["events"] == [event["text"] for event in reversed(pool["events"])][:15]
        and page["command"] == pool["command"]
        and (page["poolsShown"], page["pools"]) == (False, [])
    )


def pool_row(pool: dict[str, Any]) -> dict[str, str]:
    """How a pool is shown, but for its rate."""
    return {
        "Pool": pool["name"],
        "Busy": f"{pool['busy']} of {pool['max']}",
        "Idle": str(pool["idle"])
        + "".join(f"\n{pool[state]} {state}" for state in ("booting", "ending") if pool[state]),
        "Workers": f"{pool['workers']}\ntarget {pool['target']}, {pool['min']} to {pool['max']}",
        "Queued": str(pool["queued"]),
        "Requests": str(pool["requests"]),
        "Errors": str(sum(pool["outcomes"][name] for name in ERRORS)),
        "Command": pool["command"],
    }


def same_pools(page: dict[str, Any], stats: dict[str, Any]) -> bool:
    """Whether the page shows several pools as they are, and whose each child is."""
    pools = stats["pools"]
    whose = {str(child["pid"]): pool["name"] for pool in pools for child in pool["children"]}
    without = [
        {name: value for name, value in row.items() if name not in ("Requests/s", "Actions")}
        for row in page["pools"]
    ]
    return (
        without == [pool_row(pool) for pool in pools]
        and {row["PID"]: row["Pool"] for row in page["children"]} == whose
        and page["command"] == f"{len(pools)} pools"
        and all(
            number(page["figures"][f"figure-{name}"]) == sum(pool[name] for pool in pools)
            for name in ("busy", "idle", "workers", "queued")
        )
    )


def test_it_shows_what_the_server_says_under_load_and_through_a_restart(page: Page, tmp_path: Path) -> None:
    with served(page, tmp_path, "--min-pool-size", "2", "--max-pool-size", "3") as server:
        before = server.wait_ready(2)
        page.open(admin(server))
        page.wait(lambda shown: same(shown, server.stats()), "what the server says, before any request")
        load = Load(server.address, 4)
        with load:
            # Whatever it shows lies between what was before and what is after.
            for _ in range(2):
                least = server.pool()["requests"]
                shown = page.wait(
                    lambda shown, n=least: number(shown["figures"]["more-requests"]) > n, "news"
                )
                assert number(shown["figures"]["more-requests"]) <= server.pool()["requests"]
                assert shown["state"] == "Ready"
            assert number(shown["figures"]["figure-requests"]) > 0
            page.driver.execute_script(
                "window.seen = []; new MutationObserver(() => window.seen.push("
                "document.getElementById('restarting').textContent)).observe("
                "document.getElementById('restarting'), {childList: true});"
            )
            page.press("Restart workers")
            page.wait(lambda shown: not set(pids(shown)) & set(before), "the new workers")
            page.wait(lambda shown: "all workers have been replaced" in shown["events"], "the restart's end")
            seen = page.driver.execute_script("return window.seen")
            assert seen[:1] == ["Restarting: the workers are being replaced, one by one."]
        assert load.report.count() == 0, load.report
        page.rest()
        shown = page.wait(lambda shown: same(shown, server.stats()), "what the server says, after all")
        assert number(shown["figures"]["more-requests"]) == load.report.answers
        assert shown["restarting"] is None
        assert "restarting all workers: asked for on the admin listener" in shown["events"]
        assert len(shown["charts"]) == 4 and all(
            line.count("L") + line.count("H") > 1 for line in shown["lines"][:1]
        )
        assert shown["charts"][0].startswith(
            "Requests and errors per second, now and at most in the time shown:"
        )


def test_its_buttons_do_what_they_say_and_killing_asks_first(page: Page, tmp_path: Path) -> None:
    with served(page, tmp_path, "--max-pool-size", "2", expected=["worker ended.*cause=killed"]) as server:
        (first,) = server.wait_ready(1)
        page.open(admin(server))
        page.press("Remove a worker")
        page.wait(lambda shown: "minimum of 1 worker already" in (shown["outcome"] or ""), "why not")
        page.press("Add a worker")
        page.wait(lambda shown: "One more worker was asked for" in (shown["outcome"] or ""), "the outcome")
        page.wait(lambda shown: len(pids(shown)) == 2, "a second row")
        server.wait_ready(2)
        page.wait(lambda shown: shown["figures"]["more-workers"] == "target 2, from 1 to 2", "the new target")
        page.press("Add a worker")
        page.wait(lambda shown: "maximum of 2 workers already" in (shown["outcome"] or ""), "why not")
        page.press("Drain", first)
        page.wait(
            lambda shown: first not in pids(shown) and len(pids(shown)) == 2, "the drained one's successor"
        )
        assert server.pool()["counters"]["worker_ended_drained"] == 1
        second = server.wait_ready(2)[0]
        page.wait(lambda shown: second in pids(shown), "its row")
        # Kill: the dialog's first choice is not to, and Escape leaves it.
        for leave in (
            lambda: page.press("Cancel"),
            lambda: ActionChains(page.driver).send_keys(Keys.ESCAPE).perform(),
        ):
            page.press("Kill", second)
            shown = page.wait(lambda shown: shown["dialog"], "the dialog")
            assert f"Kill worker {second}?" in shown["dialog"]
            assert shown["focused"] == "Cancel"
            leave()
            page.wait(lambda shown: shown["dialog"] is None, "no dialog")
        assert second in server.children()
        page.press("Kill", second)
        page.wait(lambda shown: shown["dialog"], "the dialog")
        page.press("Kill it")
        page.wait(lambda shown: second not in pids(shown), "no row of the killed one")
        assert server.pool()["counters"]["worker_ended_killed"] == 1
        page.wait(lambda shown: f"Worker {second} was killed." in (shown["outcome"] or ""), "the outcome")
        server.wait_ready(2)
        page.wait(lambda shown: shown["figures"]["figure-workers"] == "2", "its successor")
        page.press("Remove a worker")
        page.wait(lambda shown: len(pids(shown)) == 1, "one row")
        assert len(server.wait_ready(1)) == 1


def test_several_pools_have_a_row_each_whose_buttons_act_on_that_pool_alone(
    page: Page, tmp_path: Path
) -> None:
    config = tmp_path / "two.py"
    config.write_text('pools = {"api": {"routes": ["/api"], "min_pool_size": 1, "max_pool_size": 3}}\n')
    with served(page, tmp_path, "--config", str(config), "--max-pool-size", "2") as server:

        def children() -> dict[str, list[int]]:
            return {
                pool["name"]: [child["pid"] for child in pool["children"] if child["state"] == "idle"]
                for pool in server.stats()["pools"]
            }

        wait_until(lambda: [len(pids) for pids in children().values()] == [1, 1], "a worker of each")
        page.open(admin(server))
        shown = page.wait(lambda shown: same_pools(shown, server.stats()), "what the server says")
        assert shown["poolsShown"]
        assert [row["Pool"] for row in shown["pools"]] == ["default", "api"]
        assert not {"Add a worker", "Remove a worker"} & set(shown["buttons"]), (
            "it is not clear of which pool"
        )
        assert {"Restart workers", "Restart", "Add", "Remove"} <= set(shown["buttons"])

        page.press("Remove", pool="api")
        page.wait(
            lambda shown: "The pool api aims at its minimum of 1 worker already." in (shown["outcome"] or ""),
            "why not",
        )
        page.press("Add", pool="api")
        page.wait(
            lambda shown: "One more worker of api was asked for." in (shown["outcome"] or ""), "the outcome"
        )
        wait_until(lambda: [len(pids) for pids in children().values()] == [1, 2], "another worker of api")
        page.wait(lambda shown: same_pools(shown, server.stats()), "the new worker")

        before = children()
        page.press("Restart", pool="api")
        page.wait(lambda shown: "all workers have been replaced" in shown["events"], "the restart's end")
        after = children()
        assert after["default"] == before["default"]
        assert not set(after["api"]) & set(before["api"])
        page.rest()
        shown = page.wait(lambda shown: same_pools(shown, server.stats()), "the new workers")
        assert shown["eventPools"][shown["events"].index("all workers have been replaced")] == "api"

        page.press("Remove", pool="api")
        wait_until(lambda: [len(pids) for pids in children().values()] == [1, 1], "one less")

        # Every worker of both, by the one button that is for all.
        before = children()
        page.press("Restart workers")

        def replaced() -> bool:
            now = children()
            return all(len(now[name]) == 1 and now[name] != pids for name, pids in before.items())

        wait_until(replaced, "new workers of both")
        page.rest()
        page.check_widths()


def test_a_full_pool_and_its_queue_stand_out_beside_one_at_rest(page: Page, tmp_path: Path) -> None:
    config = tmp_path / "two.py"
    config.write_text('pools = {"api": {"routes": ["/gate"], "max_pool_size": 1}}\n')
    with served(page, tmp_path, "--config", str(config)) as server:
        page.open(admin(server))
        with server.gate() as gate:
            clients = [server.connect() for _ in range(2)]
            for client in clients:
                client.request("GET", gate)
            shown = page.wait(
                lambda shown: [row["Queued"][:1] for row in shown["pools"]] == ["0", "1"], "a queue"
            )
            default, api = shown["pools"]
            assert (default["Busy"], api["Busy"]) == ("0 of 1", "1 of 1")
            assert re.fullmatch(r"1\nlongest \d+(\.\d+)? m?s", api["Queued"])
            marked = page.driver.execute_script(
                "return [...document.querySelectorAll('#pools td.warn')]"
                ".map((cell) => cell.closest('tr').dataset.name)"
            )
            assert marked == ["api", "api"], "busy and queued"
            rates = page.wait(
                lambda shown: shown["pools"][1]["Requests/s"] not in ("0", "–"), "its requests per second"
            )
            assert rates["pools"][0]["Requests/s"] == "0"
        assert [client.answer().status for client in clients] == [200, 200]
        page.wait(lambda shown: same_pools(shown, server.stats()), "what the server says, after all")


def test_below_the_admin_prefix_it_shows_and_has_no_buttons(page: Page, tmp_path: Path) -> None:
    with served(page, tmp_path, "--admin-prefix", "/-/pool/") as server:
        server.wait_ready(1)
        page.open(admin(server))
        assert {"Restart workers", "Kill"} <= set(page.read()["buttons"])
        host, port = server.address
        page.open(f"http://{host}:{port}/-/pool/")
        shown = page.wait(lambda shown: shown["state"] == "Ready", "readiness")
        assert pids(shown) == server.children()
        actions = {"Restart workers", "Add a worker", "Remove a worker", "Drain", "Kill"}
        assert not actions & set(shown["buttons"])
        assert {"PID", "Memory"} <= set(shown["buttons"]), "sorting is for everybody"
        # Nor can a page from there do anything.
        status = page.driver.execute_async_script(
            "fetch('restart-workers', {method: 'POST', headers: {'X-Poolparty': '1'}})"
            ".then((answer) => arguments[0](answer.status))"
        )
        assert status == 403
        assert server.pool()["generation"] == 0
        assert [entry for entry in page.complaints() if "403" not in entry] == []


def test_rows_are_sorted_by_the_heading_that_is_pressed(page: Page, tmp_path: Path) -> None:
    with served(page, tmp_path, "--min-pool-size", "3", "--max-pool-size", "3") as server:
        server.wait_ready(3)
        with server.gate("a") as one, server.gate("b") as other:
            # All three answer, so that each has a number of requests of its own.
            clients = [server.connect() for _ in range(3)]
            for client, target in zip(clients, (one, other, "/"), strict=True):
                client.request("GET", target)
            assert clients[2].answer().status == 200
            for _ in range(5):
                assert server.get("/").status == 200
        assert [client.answer().status for client in clients[:2]] == [200, 200]
        assert server.get("/").status == 200
        page.open(admin(server))
        page.wait(lambda shown: same(shown, server.stats()), "what the server says")
        requests = {child["pid"]: child["requests"] for child in server.pool()["children"]}
        assert len(set(requests.values())) > 1
        assert pids(page.read()) == sorted(requests)
        by_requests = sorted(requests, key=lambda pid: (-requests[pid], pid))
        at = page.read()["headings"].index("Requests")
        for presses, order, sort in (
            (1, by_requests, "descending"),
            (1, sorted(requests, key=lambda pid: (requests[pid], pid)), "ascending"),
        ):
            for _ in range(presses):
                page.driver.find_elements(By.CSS_SELECTOR, "#children thead button")[at].click()
            shown = page.read()
            assert pids(shown) == order
            assert [each for each in shown["sorted"] if each] == [sort]
            assert shown["sorted"][at] == sort
        page.rest()
        page.driver.find_elements(By.CSS_SELECTOR, "#children thead button")[0].send_keys(Keys.ENTER)
        assert pids(page.read()) == sorted(requests), "the keyboard does it too"


def test_an_outage_is_told_and_it_goes_on_by_itself(page: Page, tmp_path: Path) -> None:
    with Server(tmp_path / "one", "--admin-address", "127.0.0.1:0") as server:
        (pid,) = server.wait_ready(1)
        page.open(admin(server))
        port = server.admin_port
        server.terminate()
        shown = page.wait(lambda shown: shown["connection"], "the outage")
        assert shown["connection"].startswith("The server has not answered since ")
        assert (shown["state"], shown["title"]) == ("No answer", "No answer · Poolparty")
        assert pids(shown) == [pid], "what was known stays"
    with served(page, tmp_path / "two", "--admin-address", f"127.0.0.1:{port}") as server:
        (other,) = server.wait_ready(1)
        shown = page.wait(lambda shown: pids(shown) == [other], "the new server's worker")
        assert shown["connection"] is None
        page.wait(lambda shown: same(shown, server.stats()), "what the new server says")
        # That nobody answered is in the console, and nothing else.
        assert [entry for entry in page.complaints() if "ERR_CONNECTION_REFUSED" not in entry] == []


def test_a_slow_request_stands_out_as_text_and_a_phone_needs_no_sideways_scrolling(
    page: Page, tmp_path: Path
) -> None:
    with served(page, tmp_path, "--request-ids", "--min-pool-size", "2", "--max-pool-size", "2") as server:
        server.wait_ready(2)
        with server.gate() as gate:
            target = f"{gate}&x=<img/src=x/onerror=alert(1)>{'y' * 300}"
            asked = threading.Thread(target=server.get, args=(target,))
            asked.start()
            page.open(admin(server))
            shown = page.wait(
                lambda shown: any("long" in row["For"] for row in shown["children"]), "a slow request's mark"
            )
            (row,) = [row for row in shown["children"] if row["State"] == "busy"]
            assert re.fullmatch(r"GET (.{200,})\.\.\.", runs := row["Runs"].split("\n")[0])
            assert f"GET {target}".startswith(runs[:-3])
            assert "id " in row["Runs"]
            assert page.driver.find_elements(By.CSS_SELECTOR, "#children img") == []
            page.check_widths()
        asked.join()


def test_a_child_that_leaks_and_why_it_was_replaced_stand_there(page: Page, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(
        """
import os, poolparty
kept = []
def handler(request):
    kept.append(b"x" * (int(request.query) << 20))
    return str(os.getpid())
poolparty.serve(handler)
"""
    )
    pool = ("--min-pool-size", "3", "--max-pool-size", "3", "--worker-memory-limit", "120M")
    with served(page, tmp_path, *pool, command=[sys.executable, str(tmp_path / "leaky.py")]) as server:
        server.wait_ready(3)
        page.open(admin(server))
        with server.connect() as client:
            pid = int(client.ask("GET", "/?60").text)
            shown = page.wait(
                lambda shown: any("▲" in row["Memory"] for row in shown["children"]), "the mark of a leak"
            )
            (row,) = [row for row in shown["children"] if "▲" in row["Memory"]]
            assert int(row["PID"]) == pid
            assert re.match(r"▲ \d+(\.\d)?× the others", row["Memory"])
            client.ask("GET", "/?80")
        shown = page.wait(lambda shown: shown["events"], "its end")
        assert f"worker-pid={pid} " in shown["events"][0] and 'cause="memory limit"' in shown["events"][0]
        page.wait(lambda shown: pid not in pids(shown) and len(pids(shown)) == 3, "its successor")
        assert not any("▲" in row["Memory"] for row in page.read()["children"])


def test_a_viewer_who_stays_gets_only_what_is_new(page: Page, tmp_path: Path) -> None:
    with served(page, tmp_path) as server:
        server.wait_ready(1)
        page.open(admin(server))
        names = page.wait(lambda shown: page.driver.execute_script(ASKED)[3:], "some questions") and (
            page.driver.execute_script(ASKED)
        )
        since = [int(name.rpartition("=")[2]) for name in names]
        assert since[0] == 0 and since == sorted(since) and since[-1] > 0
        with urllib.request.urlopen(f"{admin(server)}history.json?since={since[-1]}") as answer:
            assert len(json.load(answer)["history"]) < 10


ASKED = """return performance.getEntriesByType("resource").map((each) => each.name)
    .filter((name) => name.includes("history.json"))"""
