"""util/verify_images.py over HTTP: batches, leases, repeats, kills, and attacks on the page. test_browser.py has the clicks."""
import asyncio
import csv
import http.client
import json
import os
import random
import re
import socket
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from conftest import made_once, run_script
from pages import Server

EVIL_CLASS = "<script>alert(1)</script>"
EVIL_KEY = "<img src=x onerror=alert(1)>.png"
COUNTS = {"ramen": 23, "sushi": 17, EVIL_CLASS: 7}


def make_images(folder):
    """images/ with a small PNG per row, and list.tsv, whose classes are mixed."""
    rng, rows = np.random.default_rng(0), []
    (folder / "images" / "sub").mkdir(parents=True)
    for name, count in COUNTS.items():
        for i in range(count):
            key = EVIL_KEY if name == EVIL_CLASS and i == 0 else f"sub/{list(COUNTS).index(name)}_{i}.png"
            cv2.imwrite(str(folder / "images" / key), rng.integers(0, 255, (9, 11, 3), np.uint8))
            rows.append(f"{key}\t{name}\tnumber {i}\n" if i % 2 else f"{key}\t{name}\n")
    (folder / "list.tsv").write_text("".join(rng.permutation(rows)))
    (folder / "secret.png").write_bytes(b"\x89PNG secret")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with images/ and list.tsv."""
    return made_once(tmp_path_factory, "pictures", make_images)


def serve(pictures, output, *more, repeat=0, list_path=None):
    return Server(
        f"--list={list_path or pictures / 'list.tsv'}", f"--image_dir={pictures}/images", f"--output={output}", f"--repeat={repeat}", *more
    )


def lines_of(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def listed(pictures):
    return [tuple(line[:2]) for line in lines_of(pictures / "list.tsv")]


def test_every_row_is_asked_once_one_class_at_a_time(pictures, tmp_path):
    with serve(pictures, tmp_path / "v.tsv", "--page_size=5") as server:
        classes = []
        while rows := server.batch():
            assert len({row["class_name"] for row in rows}) == 1
            assert len(rows) <= 5
            classes.append(rows[0]["class_name"])
            server.decide(rows, "1")
        assert classes == sorted(classes, key=classes.index), "a class came twice"
        assert server.call("write")["text"].endswith("47 rows decided: 47 correct, 0 mislabeled, 0 unclear")
        done = server.stop()
    assert done.returncode == 0, done.stderr
    assert "47 rows decided: 47 correct, 0 mislabeled, 0 unclear; 47 of 47 answers" in done.stdout
    assert "next: python util/join_labels.py --decisions=" in done.stdout
    assert sorted(map(tuple, (line[:3] for line in lines_of(tmp_path / "v.tsv")))) == sorted((*row, "1") for row in listed(pictures))
    assert sorted(map(tuple, lines_of(tmp_path / "v_list.tsv"))) == sorted((*row, "1") for row in listed(pictures))


def test_undo_and_a_window_that_is_loaded_again(pictures, tmp_path):
    with serve(pictures, tmp_path / "v.tsv", "--page_size=4") as server:
        rows = server.batch()
        server.decide(rows[1::-1], "0")
        again = server.batch()
        assert [row["row"] for row in again[:2]] == [row["row"] for row in rows[2:]], "rows it has not decided come back"
        start = server.call("start")
        assert [row["row"] for row in start["history"]] == [rows[1]["row"], rows[0]["row"]], "as decided, though within one second"
        server.decide(start["history"][1:], "undo")
        assert server.call("start")["progress"]["done"] == 1
        assert rows[0]["row"] in [row["row"] for row in server.batch(held=[row["row"] for row in again])]
    with serve(pictures, tmp_path / "v.tsv") as server:
        assert server.call("start")["progress"]["done"] == 1, "it goes on where it stopped"
        assert server.call("start", author="")["history"] == [], "a browser without a name"


def work(server, most=1000):
    """Lets ann and bob decide in turn, until nothing is left or so many rows are decided.

    Returns {author: row numbers that were decided}, and {author: rows that a window still shows}.
    """
    asked, waiting, rng = {"ann": [], "bob": []}, {"ann": [], "bob": []}, random.Random(3)
    while sum(map(len, asked.values())) < most:
        for author, rows in waiting.items():
            rows += server.batch(author, author, held=[row["row"] for row in rows])
        if not any(waiting.values()):
            break
        assert not {row["row"] for row in waiting["ann"]} & {row["row"] for row in waiting["bob"]}
        author = rng.choice([author for author in waiting if waiting[author]])
        row = waiting[author].pop()
        server.decide([row], "1" if row["row"] % 3 or author == "ann" else "0", author, author)
        asked[author].append(row["row"])
    return asked, waiting


def test_two_people_never_get_one_row_but_the_repeats(pictures, tmp_path):
    with serve(pictures, tmp_path / "v.tsv", "--page_size=3", repeat=0.2) as server:
        asked, _ = work(server)
        progress = server.call("start")["progress"]
        done = server.stop()
    total = sum(COUNTS.values())
    for author, rows in asked.items():
        assert len(rows) > 10, author
    twice = len(asked["ann"] + asked["bob"]) - total
    assert 0 < twice == progress["twice"] == progress["total"] - total
    assert set(asked["ann"] + asked["bob"]) == set(range(total))
    assert f"{progress['alike']} of {twice} rows that were asked twice were decided alike" in done.stdout


def test_a_killed_command_ends_its_windows_and_the_next_one_asks_no_row_twice(pictures, tmp_path):
    """Loans are not kept, and need not be: a window of the command before is refused, and has no decision that is not on disk."""
    with serve(pictures, tmp_path / "v.tsv", "--page_size=3", repeat=0.2) as server:
        before, shown = work(server, most=20)
        server.kill()
    with serve(pictures, tmp_path / "v.tsv", "--page_size=3", f"--port={server.port}", repeat=0.2) as again:
        for author, rows in shown.items():
            change = {"row": rows[0]["row"], "label": "1", "right_class": "", "before": rows[0]["before"]}
            for action, body in (("decide", {"decisions": [change]}), ("renew", {"held": []}), ("start", {})):
                text = json.dumps({"author": author, "window": author, **body})
                status, _, why = again.ask("POST", f"/{action}", text, X_Token=server.token)
                assert (status, b"of an earlier start" in why) == (403, True)
        after, _ = work(again)
        progress = again.call("start")["progress"]
    total, asked = sum(COUNTS.values()), before["ann"] + before["bob"] + after["ann"] + after["bob"]
    assert len(before["ann"] + before["bob"]) == 20
    assert set(asked) == set(range(total))
    assert len(asked) - total == progress["twice"] == progress["total"] - total > 0
    assert len(lines_of(tmp_path / "v.tsv")) == len(asked)


def test_leases_keep_people_apart_until_a_window_closes(pictures, tmp_path):
    with serve(pictures, tmp_path / "v.tsv", "--page_size=500") as server:
        held = []
        while rows := server.batch("ann", "a", held):
            held += [row["row"] for row in rows]
        assert len(held) == 47
        assert not server.batch("bob", "b")
        assert server.call("start", "bob", "b")["progress"]["with_others"] == 47
        server.call("leave", "ann", "a")
        assert server.batch("bob", "b")


def test_a_row_that_its_window_has_decided_is_free_for_the_repeat(pictures, tmp_path):
    """A window may still name it: its sign of life came while the answer to its decision was under way."""
    with serve(pictures, tmp_path / "v.tsv", "--page_size=500", repeat=1) as server:
        rows = server.batch("ann", "a")
        held = [row["row"] for row in rows]
        assert server.call("start", "bob", "b")["progress"]["with_others"] == len(held)
        server.decide(rows, "1", "ann", "a")
        server.call("renew", "ann", "a", held=held)
        assert server.call("start", "bob", "b")["progress"]["with_others"] == 0
        asked = []
        while rows := server.batch("bob", "b", asked):
            asked += [row["row"] for row in rows]
        assert set(held) <= set(asked)


def test_a_request_sent_again_changes_nothing_and_another_windows_decision_is_not_overwritten(pictures, tmp_path):
    with serve(pictures, tmp_path / "v.tsv") as server:
        rows = server.batch()[:3]
        for _ in range(3):
            server.decide(rows, "0")
        assert len(lines_of(tmp_path / "v.tsv")) == 3
        wrong = [{"row": rows[0]["row"], "label": "1", "right_class": "", "before": 0}]
        body = json.dumps({"author": "ann", "window": "w", "decisions": wrong})
        status, _, text = server.ask("POST", "/decide", body, X_Token=server.token)
        assert (status, b"in another window" in text) == (409, True)
        after = [{**row, "before": 1} for row in rows]
        for _ in range(3):
            server.decide(after, "undo")
        assert len(lines_of(tmp_path / "v.tsv")) == 6


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_no_decision_is_lost_or_doubled(pictures, tmp_path, kills):
    rng, output, decided, moments = random.Random(kills), tmp_path / "v.tsv", [], []
    for life in range(kills + 1):
        with serve(pictures, output, "--page_size=1") as server:
            killer, moment = threading.Timer(rng.uniform(0, 0.002), server.kill), len(decided) + rng.randrange(2)
            try:
                while rows := server.batch():
                    if life < kills and len(decided) == moment:
                        killer.start()  # while the next requests are answered
                    server.decide(rows, "1")
                    decided.append(rows[0]["key"])
            except (OSError, http.client.HTTPException):
                killer.join()
                moments.append(len(decided))
    assert len(moments) == kills
    print("\ndecisions confirmed before each kill:", moments)
    keys = [line[0] for line in lines_of(output)]
    assert len(keys) == len(set(keys)) == 47
    assert set(decided) <= set(keys)


def test_examples_are_rows_of_the_class(sample_dir, tmp_path):
    keys = {}
    for line in lines_of(sample_dir / "all.tsv"):
        keys.setdefault(line[1], []).append(line[0])
    (tmp_path / "images" / "img").mkdir(parents=True)
    for found in keys.values():
        for key in found:  # each grey as its number; a PNG, whatever its name says
            (tmp_path / "images" / key).write_bytes(cv2.imencode(".png", np.full((5, 7), int(key[-8:-4]), np.uint8))[1].tobytes())
    (tmp_path / "list.tsv").write_text("".join(f"{keys[name][0]}\t{name}\n" for name in keys))
    flags = [f"--data_dir={sample_dir}/data", "--num_examples=4"]
    with serve(tmp_path, tmp_path / "v.tsv", *flags) as server:
        found = server.call("batch", held=[], filter={"class_name": "tacos", "verdict": "", "suggested": ""})["examples"]["tacos"]
        assert len(found) == 4
        for path in found:
            image = cv2.imdecode(np.frombuffer(server.ask("GET", f"/{path}", X_Token=server.token)[2], np.uint8), cv2.IMREAD_GRAYSCALE)
            assert f"img/3_{image[0, 0]:04d}.jpg" in keys["tacos"]


def test_review_is_worst_first_filtered_and_accepts_suggestions(digits, tmp_path):
    table = [line.split("\t") for line in (digits / "scores.tsv").read_text().splitlines()]
    flags = [f"--review={digits}/scores.tsv", f"--image_dir={digits}/data/images", f"--output={tmp_path}/r.tsv", "--author=ann"]
    with Server(*flags) as server:
        rows = server.batch(verdict="mislabeled")
        worst = sorted((row for row in table if row[5] == "mislabeled"), key=lambda row: float(row[2]))
        assert [row["key"] for row in rows] == [row[0] for row in worst[: len(rows)]]
        assert {row["class_name"] for row in server.batch(class_name="six", verdict="correct")} == {"six"}
        server.decide(rows[:1], "0", right_class=rows[0]["nearest_class"])
        server.decide(rows[1:2], "0")
        server.decide(rows[2:3], "1")
        wanted = {"class_name": "", "verdict": "", "suggested": ""}
        counted = server.call("suggestions", filter=wanted, above=0.6, count_only=True)["count"]
        left = [row for row in worst if row[0] not in {row["key"] for row in rows[:3]} and row[6] != row[1] and float(row[7]) >= 0.6]
        assert counted == len(left) > 20
        accepted = server.call("suggestions", filter=wanted, above=0.6, count_only=False)["rows"]
        assert len(accepted) == counted
        done = server.stop()
    assert "next: python util/export_weights.py" in done.stdout
    lines = lines_of(tmp_path / "r.tsv")
    assert {(line[0], line[2], line[5]) for line in lines[3:]} == {(row[0], "0", row[6]) for row in left}
    done = run_script(
        "util/export_weights.py", f"--score_file={digits}/scores.tsv", f"--decisions={tmp_path}/r.tsv", "--weights=hard",
        f"--output_file={tmp_path}/w.npy", f"--list_file={tmp_path}/c.tsv",
    )
    decided = {line[0]: line for line in lines}
    assert "1 drop" in done.stdout
    weights, text = np.load(tmp_path / "w.npy"), (tmp_path / "c.tsv").read_text()
    for row, weight in zip(table, weights):
        assert weight == (float(decided[row[0]][2]) if row[0] in decided else row[5] == "correct")
    assert text.count("decided by ann") == len(lines)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_export_and_import_give_the_same_decisions(pictures, tmp_path, suffix):
    with serve(pictures, tmp_path / "v.tsv", repeat=0.5) as server:
        server.decide(server.batch()[:5], "0")
        server.decide(server.batch("bob", "b")[:3], "1", "bob", "b")
        server.decide(server.batch("bob", "b")[:2], "-1", "bob", "b")
    with open(tmp_path / "v.tsv", "a") as file:
        file.write(f"x, \"y\"\t{EVIL_CLASS}\t0\teve\t2026-01-02T03:04:05Z\tramen\n")
    exported = tmp_path / f"x.{suffix}"
    run_script("util/verify_images.py", f"--output={tmp_path}/v.tsv", f"--list={pictures}/list.tsv", f"--export={exported}")
    if suffix == "csv":
        with open(exported, newline="") as file:
            assert len({(row["key"], row["class"]) for row in csv.DictReader(file)}) == 48
    else:
        assert len(json.loads(exported.read_text())) == 48
    arguments = [f"--output={tmp_path}/again.tsv", f"--import={exported}"]
    assert "11 decisions imported, 0 were there already" in run_script("util/verify_images.py", *arguments).stdout
    assert "0 decisions imported, 11 were there already" in run_script("util/verify_images.py", *arguments).stdout
    assert sorted(lines_of(tmp_path / "again.tsv")) == sorted(lines_of(tmp_path / "v.tsv"))


def test_an_import_brings_nothing_back_and_a_corrected_table_counts(tmp_path):
    """A decision that was taken back stays so; of a table without times the last version counts, unless the page decided later."""
    def imported(text):
        (tmp_path / "x.csv").write_text(text)
        done = run_script("util/verify_images.py", f"--output={tmp_path}/v.tsv", f"--import={tmp_path}/x.csv")
        return int(re.search(r"(\d+) decisions? imported", done.stdout)[1])

    dated = "key,class,label,author,time\na,ramen,1,ann,2026-01-01T00:00:00Z\n"
    assert imported(dated) == 1
    with open(tmp_path / "v.tsv", "a") as file:
        file.write("a\tramen\tundo\tann\t2026-01-02T00:00:00Z\t\na\tramen\t0\tann\t2026-01-02T00:00:01Z\t\n")
    assert imported(dated) == 0
    first, corrected = "key,class,label\nb,ramen,1\n", "key,class,label\nb,ramen,0\n"
    assert [imported(text) for text in (first, first, corrected, corrected, first)] == [1, 0, 1, 0, 1]
    with open(tmp_path / "v.tsv", "a") as file:
        file.write("b\tramen\t0\timported\t2026-01-02T00:00:00Z\t\n")
    assert imported(first) == 0


def test_an_export_of_label_studio(tmp_path):
    """As its 1.23.2 writes it: people by their number, an annotation that is changed later, one skipped and one begun."""
    def annotation(choice, user, changed, cancelled=False, right_class=()):
        value = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        text = {"from_name": "right_class", "to_name": "image", "type": "textarea", "value": {"text": list(right_class)}}
        return {
            "id": 5, "completed_by": user, "result": [*[value] * bool(choice), *[text] * len(right_class)], "was_cancelled": cancelled,
            "created_at": "2026-01-02T03:04:05.042751Z", "updated_at": f"2026-01-02T03:04:{changed:02d}.741823Z", "lead_time": 3.1,
        }

    task = {"id": 1, "data": {"image": "a.png", "class": "ramen"}, "drafts": [], "predictions": [], "annotations": [
        annotation("correct", 1, 5), annotation("mislabeled", {"id": 2, "email": "bob@example.org"}, 6, right_class=["sushi"]),
        annotation("unclear", 3, 7, cancelled=True), annotation("", 4, 8, right_class=["sushi"]),
    ]}
    changed = {**task, "annotations": [annotation("unclear", 1, 9), *task["annotations"][1:]]}
    for exported in (task, task, changed):
        (tmp_path / "x.json").write_text(json.dumps([exported]))
        run_script("util/verify_images.py", f"--output={tmp_path}/v.tsv", f"--import={tmp_path}/x.json")
    assert lines_of(tmp_path / "v.tsv") == [
        ["a.png", "ramen", "1", "user 1", "2026-01-02T03:04:05Z", ""],
        ["a.png", "ramen", "0", "user 2", "2026-01-02T03:04:06Z", "sushi"],
        ["a.png", "ramen", "-1", "user 1", "2026-01-02T03:04:09Z", ""],
    ]


# --- attacks ---

@pytest.fixture(scope="module")
def target(pictures, tmp_path_factory):
    """A page whose list names files outside the folder, a link out of it, a huge image, a claim of a huge one and a pipe."""
    folder = tmp_path_factory.mktemp("target")
    images = folder / "images"
    images.mkdir()
    cv2.imwrite(str(images / "good.png"), np.zeros((3, 5), np.uint8))
    (folder / "secret.png").write_bytes((images / "good.png").read_bytes())
    (images / "link.png").symlink_to(folder / "secret.png")
    with open(images / "huge.png", "wb") as file:
        file.write((images / "good.png").read_bytes())
        file.truncate(100 << 20)
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (images / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82")
    (images / "page.png").write_text("<script>alert(1)</script>")
    os.mkfifo(images / "pipe.png")
    keys = ["good.png", "../secret.png", str(folder / "secret.png"), "link.png", "huge.png", "bomb.png", "page.png", "pipe.png", "none.png"]
    (folder / "list.tsv").write_text("".join(f"{key}\tramen\n" for key in keys))
    with serve(folder, folder / "v.tsv", list_path=folder / "list.tsv") as server:
        yield server, keys


def test_only_images_of_the_list_are_served_and_never_their_bytes(target):
    server, keys = target
    token = {"X_Token": server.token}
    status, headers, data = server.ask("GET", "/image/0", **token)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (3, 5, 3)
    for number, key in list(enumerate(keys))[1:]:
        for more in ("", "?large=1"):
            status, headers, text = server.ask("GET", f"/image/{number}{more}", **token)
            assert status == 404, key
            assert headers["content-type"].startswith("text/plain")
            assert b"<script" not in text
    assert b"larger than 64 MB" in server.ask("GET", f"/image/{keys.index('huge.png')}", **token)[2]


@pytest.mark.parametrize("path", [
    "/image/99", "/image/-1", "/image/0/../../secret.png", "/image/..%2f..%2fsecret.png", "/../secret.png", "/%2e%2e/secret.png",
    "/page.js/../../x", "/images/good.png", "/image/good.png", "/example/0/0", "/example/99/0", "//etc/passwd", "/page/page.js", "/v.tsv",
    "/image/1e0", "/image/%D9%A3",
])
def test_no_path_of_a_request_leads_to_a_file(target, path):
    server, _ = target
    assert server.ask("GET", path, X_Token=server.token)[0] in (404, 405)


def test_nothing_but_static_files_without_the_token(target):
    server, _ = target
    for token in ("", "x", server.token[:-1], server.token + "x", "é"):
        paths = [("GET", "/image/0"), ("GET", "/none"), *(("POST", f"/{name}") for name in ("start", "batch", "decide", "write"))]
        for method, path in paths:
            assert server.ask(method, path, X_Token=token.encode().decode("latin-1"))[0] == 403
            assert server.ask(method, path)[0] == 403
    for path in ("/", "/page.css", "/page.js"):
        status, headers, text = server.ask("GET", path)
        assert status == 200
        assert server.token.encode() not in text
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
            assert part in policy
        assert "unsafe" not in policy


def test_foreign_hosts_and_origins_are_refused(target):
    server, _ = target
    own = f"127.0.0.1:{server.port}"
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"):
        assert server.ask("GET", "/", Host=host)[0] == 421, host
        assert server.ask("GET", "/image/0", Host=host, X_Token=server.token)[0] == 421, host
    for host in (own, f"localhost:{server.port}", "localhost:9999", "[::1]:80"):
        assert server.ask("GET", "/image/0", Host=host, X_Token=server.token)[0] == 200, host
    for origin in ("http://evil.example", "null", "http://127.0.0.1", f"http://{own}.evil.example", ""):
        assert server.ask("POST", "/start", "{}", Origin=origin, X_Token=server.token)[0] == 403, origin
    body = json.dumps({"author": "ann", "window": "w"})
    assert server.ask("POST", "/start", body, Origin=f"http://{own}", X_Token=server.token)[0] == 200


def test_requests_that_are_no_requests_are_refused(target):
    server, _ = target
    who, change = {"author": "ann", "window": "w"}, {"row": 0, "label": "1", "right_class": "", "before": 0}
    bad = [b"", b"[", b"\xff", b"[" * 100_000, b"[]", b"null", json.dumps({"author": 1, "window": "w"}).encode()]
    for body in bad:
        assert server.ask("POST", "/decide", body, X_Token=server.token)[0] == 400, body
    wrongs = [{"row": row} for row in (9, -1, "0", 10**20, None)] + [{"label": "2"}, {"label": 1}, {"before": -1}, {"right_class": "sushi"}]
    for wrong in wrongs:
        text = json.dumps({**who, "decisions": [{**change, **wrong}]})
        assert server.ask("POST", "/decide", text, X_Token=server.token)[0] == 400, wrong
    twice = json.dumps({**who, "decisions": [change, change]})
    assert server.ask("POST", "/decide", twice, X_Token=server.token)[0] == 409
    for author in ("", "  ", "x" * 81, "a\x1b[31m"):
        text = json.dumps({**who, "author": author, "decisions": [change]})
        assert server.ask("POST", "/decide", text, X_Token=server.token)[0] == 400, author
    assert server.call("start")["progress"]["done"] == 0


def test_a_request_of_100_MB_is_refused_unread(target):
    server, _ = target
    for length in (f"Content-Length: {100 << 20}", "Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", int(server.port)), timeout=30) as connection:
            head = f"POST /decide HTTP/1.1\r\nHost: localhost\r\nX-Token: {server.token}\r\n{length}\r\n\r\n".encode()
            piece = b"x" * (1 << 20)
            piece = b"100000\r\n" + piece + b"\r\n" if "chunked" in length else piece
            sent = 0
            try:
                connection.sendall(head)
                for _ in range(100):
                    connection.sendall(piece)
                    sent += 1
            except OSError:
                pass
            assert sent < 50
    assert server.call("start")


def test_a_thousand_requests_at_once_are_all_answered(target):
    server, _ = target

    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.port))
        writer.write(f"GET /image/0 HTTP/1.1\r\nHost: localhost\r\nX-Token: {server.token}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer[:12]

    async def ask_all():
        return await asyncio.gather(*(ask() for _ in range(1000)))

    assert set(asyncio.run(ask_all())) == {b"HTTP/1.1 200"}


def test_ten_thousand_rows_stay_quick_enough_to_decide(tmp_path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "0.png"), np.zeros((9, 9), np.uint8))
    (tmp_path / "list.tsv").write_text("".join(f"{i}.png\tclass {i % 7}\n" for i in range(10_000)))
    with serve(tmp_path, tmp_path / "v.tsv", list_path=tmp_path / "list.tsv", repeat=0.05) as server:
        decided = 0
        for _ in range(30):
            rows = server.batch()
            server.decide(rows, "1")
            decided += len(rows)
        assert server.call("start")["progress"]["done"] == decided > 1000
        assert "999 of the first 1000 images are missing" in server.stop().stderr


def test_a_second_command_for_the_same_output_is_refused(pictures, tmp_path):
    with serve(pictures, tmp_path / "v.tsv"):
        flags = [f"--list={pictures}/list.tsv", f"--image_dir={pictures}/images", f"--output={tmp_path}/v.tsv"]
        done = run_script("util/verify_images.py", *flags, check=False)
        assert done.returncode == 1
        assert "another process is writing it" in done.stderr
