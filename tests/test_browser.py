"""The page of util/verify_images.py in a real browser: by keys and by clicks, with hostile names, and the loop from images to a list."""
import re
import subprocess

import cv2
import keras
import numpy as np
import pytest
from conftest import ROOT, find_references, run_script, train_arguments, truth
from pages import Person, Server, open_browser, wait_for
from test_verify_images import COUNTS, EVIL_CLASS, EVIL_KEY, lines_of, make_images

ENTER, RIGHT, DOWN, CONTROL, ALT, META = "\ue007", "\ue014", "\ue015", "\ue009", "\ue00a", "\ue03d"  # as WebDriver writes keys


@pytest.fixture(scope="module")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def pictures(tmp_path):
    make_images(tmp_path)
    return tmp_path


def serve(pictures, *more):
    return Server(f"--list={pictures}/list.tsv", f"--image_dir={pictures}/images", f"--output={pictures}/v.tsv", "--repeat=0", *more)


def labels(path):
    """{key: what was said of it last} in a decisions file."""
    return {line[0]: line[2] for line in lines_of(path)}


def pressed(person):
    """Makes the page note the keys that are pressed from now on. Returns a function that lists them."""
    person.browser.execute_script("document.pressed = []; addEventListener('keydown', (e) => document.pressed.push(e.key), true)")
    return lambda: person.browser.execute_script("return document.pressed")


def test_keys_alone_take_one_press_per_wrong_image_and_one_more_per_page(browser, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(52):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.full((5, 7), i, np.uint8))
    (tmp_path / "list.tsv").write_text("".join(f"{i}.png\tramen\n" for i in range(52)))
    with serve(tmp_path) as server:
        person = Person(browser, server.url)
        person.find("#name")[0].send_keys("a\u200bb\n")
        assert person.find("#ask[open]"), "the server takes no name with invisible characters"
        person.find("#name")[0].clear()
        person.say_name("Ann Ä")
        keys = [cell.get_attribute("aria-keyshortcuts") for cell, _, _ in person.cells()]
        assert keys[:11] == [*"1234567890a"]
        assert keys[29:32] == ["x", "Shift+A", "Shift+B"]
        assert len(set(keys)) == 50
        seen = pressed(person)
        wrong = {f"{i}.png": keys[i][-1] for i in (0, 9, 10, 28, 29, 30, 49)}
        person.press(*wrong.values())
        assert {key for _, key, label in person.cells() if label == "0"} == set(wrong)
        person.press(ENTER)
        assert [key for key in seen() if key != "Shift"] == [*wrong.values(), "Enter"]
        assert len(person.cells()) == 2, "the next page"
        assert {line[3] for line in lines_of(tmp_path / "v.tsv")} == {"Ann Ä"}
        assert labels(tmp_path / "v.tsv") == {f"{i}.png": "0" if f"{i}.png" in wrong else "1" for i in range(50)}
        for modifier in (CONTROL, ALT, META):
            person.press(modifier + "1")
        person.press("3", "m", "1")  # no image has this key, and one by one none has any
        assert len(lines_of(tmp_path / "v.tsv")) == 50
        person.press("m", "2", "2", "1")
        assert [label for _, _, label in person.cells()] == ["0", None]
        assert [line[2] for line in lines_of(tmp_path / "v.tsv")[50:]] == ["0", "undo", "0"]
        assert not person.errors()


def test_clicks_undo_and_one_by_one(browser, pictures):
    with serve(pictures, "--author=ann", "--page_size=6") as server:
        person = Person(browser, server.url)
        first = [key for _, key, _ in person.cells()]
        for number in (0, 1):
            person.click(person.cells()[number][0])
        person.press(" ", RIGHT, " ")
        assert [label for _, _, label in person.cells()] == ["0", None, "0", None, None, None]
        assert labels(pictures / "v.tsv") == {first[0]: "0", first[1]: "undo", first[2]: "0"}, "a mark is on disk at once"
        person.press(ENTER)
        second = [key for _, key, _ in person.cells()]
        assert not set(first) & set(second)
        person.press("u")
        assert [key for _, key, _ in person.cells()] == first, "the page before is back"
        assert [label for _, _, label in person.cells()] == ["0", None, "0", None, None, None]
        person.press("u", "s", DOWN, "m")
        assert person.find("#single:not([hidden])")
        person.press("n", "y", "u", "s", "y", "y", "y")  # the third image was marked as unclear above
        found = labels(pictures / "v.tsv")
        assert [found[key] for key in first] == ["0", "0", "-1", "-1", "1", "1"]
        assert found[second[0]] == "1"
        person.press("z")
        assert person.find("#zoom[open]")
        person.press("z")
        assert not person.find("#zoom[open]")
        person.click("#write")
        assert "rows decided" in person.text("#message")
        assert not person.errors()


def test_a_copy_of_the_tab_is_another_window(browser, pictures):
    with serve(pictures, "--page_size=3") as server:
        person, tab = Person(browser, server.url), browser.current_window_handle
        person.say_name("ann")
        shown = [key for _, key, _ in person.cells()]
        browser.execute_script("window.open(location.href)")
        browser.switch_to.window(next(other for other in browser.window_handles if other != tab))
        person.wait_idle()
        assert len(person.cells()) == 3
        assert not set(shown) & {key for _, key, _ in person.cells()}
        wait_for(lambda: server.call("start", "bob", "b")["progress"]["with_others"] == 12)  # two pages each
        browser.close()
        browser.switch_to.window(tab)
        wait_for(lambda: server.call("start", "bob", "b")["progress"]["with_others"] == 6)


def test_a_clock_that_is_set_back_and_a_long_class_name_do_no_harm(browser, pictures):
    (pictures / "list.tsv").write_text("".join(f"sub/0_{i}.png\t{'ramen ' * 999}x\n" for i in range(23)))
    with serve(pictures, "--author=ann") as server:
        person = Person(browser, server.url)
        browser.execute_script("Date.now = () => 0")
        person.press(*"123456")
        assert re.fullmatch(r"6 of 23 answered, \d+ per minute, about \d+ min left", person.text("#numbers"))
        assert browser.execute_script("return document.querySelector('header').offsetHeight") < 300


def test_names_are_shown_as_text(browser, pictures):
    with serve(pictures, "--author=ann", "--page_size=50") as server:
        person = Person(browser, server.url)
        while person.text("#class_name") != EVIL_CLASS:
            person.press(ENTER)
        assert EVIL_KEY in [key for _, key, _ in person.cells()]
        person.press("m")
        while EVIL_KEY not in person.text("#facts"):
            person.press("y")
        assert len(person.find("script")) == 1
        assert not person.find("#facts img")
        assert not person.errors(), "the browser asked for something else, or refused a part of the page"


def test_a_dead_server_is_reported_and_nothing_confirmed_is_lost(browser, pictures):
    with serve(pictures, "--author=ann") as server:
        person = Person(browser, server.url)
        person.click(person.cells()[4][0])
        key = person.cells()[4][1]
        server.kill()
        person.click(person.cells()[5][0])
        assert "The server does not answer" in person.text("#message")
        assert person.cells()[5][2] is None
    with serve(pictures, "--author=ann") as server:
        person = Person(browser, server.url)
        assert key not in [shown for _, shown, _ in person.cells()]
        person.press("u")
        assert [shown for _, shown, _ in person.cells()] == [key]
        browser.get(server.url.replace("token=", "token=x"))
        person.wait_message("the token is missing or of an earlier start")


def write_scores(path):
    """A table of scores of the pictures' rows: number i of a class scores i, and is nearest to another class."""
    names = list(COUNTS)
    lines = []
    for c, name in enumerate(names):
        for i in range(1, COUNTS[name]):
            verdict = "mislabeled" if i < 6 else "correct"
            nearest = names[(c + 1) % 3] if i < 6 else name
            lines.append(f"sub/{c}_{i}.png\t{name}\t{i}.{c}\t{i}\t0.5\t{verdict}\t{nearest}\t{i / 10}\tcosine\n")
    path.write_text("".join(lines))


def test_review(browser, pictures):
    write_scores(pictures / "scores.tsv")
    flags = [f"--review={pictures}/scores.tsv", f"--image_dir={pictures}/images", f"--output={pictures}/r.tsv", "--author=ann"]
    with Server(*flags) as server:
        person = Person(browser, server.url)
        assert person.text("#facts") == "sub/0_1.png · score 1.000 · mislabeled · nearest: sushi (cosine 0.100)"
        assert person.text("#numbers").startswith("0 of 15 answered"), "of those that the filter shows"
        assert [section.text for section in person.find(".examples p")] == ["Examples of ramen, not truth", "Examples of sushi, not truth"]
        person.press("k")
        assert person.text("#facts").startswith("sub/1_1.png")
        assert person.text("#numbers").startswith("1 of 15 answered")
        person.press("d", "r")
        assert person.text("#found li") == "ramen", "the suggestion is the first"
        person.press(*"sush")
        assert [item.text for item in person.find("#found li")] == ["sushi"]
        person.press(ENTER, "r", ENTER, "u", "s")
        assert labels(pictures / "r.tsv") == {"sub/0_1.png": "1", "sub/1_1.png": "0", "sub/2_1.png": "0", "sub/0_2.png": "-1"}
        assert lines_of(pictures / "r.tsv")[2][5] == "sushi"
        browser.execute_script("document.querySelector('#above').value = '0.4'")
        person.find("#accept_all")[0].click()
        person.accept_alert("Relabel 6 rows as suggested?")
        assert "6 rows relabelled" in person.text("#message")
        accepted = lines_of(pictures / "r.tsv")[-6:]
        assert {(line[0][4:], line[2]) for line in accepted} == {(f"{c}_{i}.png", "0") for c in range(3) for i in (4, 5)}
        person.press("u")
        assert [line[2] for line in lines_of(pictures / "r.tsv")[-6:]] == ["undo"] * 6
        person.choose("#filter_class", "sushi")
        person.choose("#filter_verdict", "correct")
        assert person.text("#facts").startswith("sub/1_6.png")
        assert not person.errors()


FAILING = """const fetch_ = window.fetch; let count = 0;
window.fetch = (url, options) => url === "decide" && ++count === 2 ? Promise.reject(new TypeError("cut off")) : fetch_(url, options);"""
HELD = """const fetch_ = window.fetch;
window.fetch = async (url, options) => {
    if (url === "decide") await new Promise((go) => { window.go = go; });
    return fetch_(url, options);
};"""


def test_an_undo_of_many_that_breaks_off_goes_on(browser, pictures):
    """Of 600 relabelled rows, 500 are taken back before the connection is lost; the next u takes the others back, none twice."""
    line = "{}\tramen\t0.1\t0\t0.5\tmislabeled\tsushi\t0.9\tcosine\n"
    keys = ["sub/0_1.png", *(f"none/{i}.png" for i in range(599))]
    (pictures / "scores.tsv").write_text("".join(map(line.format, keys)))
    flags = [f"--review={pictures}/scores.tsv", f"--image_dir={pictures}/images", f"--output={pictures}/r.tsv", "--author=ann"]
    with Server(*flags) as server:
        person = Person(browser, server.url)
        person.find("#accept_all")[0].click()
        person.accept_alert("Relabel 600 rows as suggested?")
        browser.execute_script(FAILING)
        person.press("u")
        assert "The server does not answer" in person.text("#message")
        assert [line[2] for line in lines_of(pictures / "r.tsv")].count("undo") == 500
        person.press("u")
        undone = [line[0] for line in lines_of(pictures / "r.tsv") if line[2] == "undo"]
        assert sorted(undone) == sorted(keys)
        assert person.text("#numbers").startswith("0 of 600 answered")


def test_a_key_while_a_decision_is_under_way_is_not_about_the_row_behind(browser, pictures):
    write_scores(pictures / "scores.tsv")
    flags = [f"--review={pictures}/scores.tsv", f"--image_dir={pictures}/images", f"--output={pictures}/r.tsv", "--author=ann"]
    with Server(*flags) as server:
        person = Person(browser, server.url)
        browser.execute_script(HELD)
        body = person.find("body")[0]
        body.send_keys("k")
        body.send_keys("r")
        assert not person.find("#relabel[open]")
        browser.execute_script("window.go()")
        person.wait_idle()
        assert labels(pictures / "r.tsv") == {"sub/0_1.png": "1"}
        assert not person.find("#relabel[open]")
        assert person.text("#facts").startswith("sub/1_1.png")


def test_review_of_a_table_without_cosines(browser, pictures):
    """As a classifier writes it."""
    write_scores(pictures / "scores.tsv")
    lines = [line.split("\t") for line in (pictures / "scores.tsv").read_text().splitlines()]
    (pictures / "scores.tsv").write_text("".join("\t".join([*line[:2], "nan", *line[3:7], "nan", "probability"]) + "\n" for line in lines))
    flags = [f"--review={pictures}/scores.tsv", f"--image_dir={pictures}/images", f"--output={pictures}/r.tsv", "--author=ann"]
    with Server(*flags) as server:
        person = Person(browser, server.url)
        assert person.text("#facts").endswith("mislabeled · nearest: sushi")
        person.press("k", "k")
        assert len(lines_of(pictures / "r.tsv")) == 2
        assert not person.errors()


def test_what_nobody_saw_is_not_verified_and_a_marked_page_moves_on(browser, pictures):
    """Enter in the grid gives an image that cannot be shown no label; with every image marked, one by one goes on behind them."""
    lines = (pictures / "list.tsv").read_text().splitlines()
    lost = [line.split("\t")[0] for line in lines if "\tramen" in line][:2]
    for key in lost:
        (pictures / "images" / key).write_bytes(b"cut off")
    with serve(pictures, "--author=ann", "--page_size=4") as server:
        person = Person(browser, server.url)
        while person.text("#class_name") != "ramen":
            person.press(ENTER)
        while person.text("#class_name") == "ramen":
            shown = sum(key in lost for _, key, _ in person.cells())
            wait_for(lambda shown=shown: len(person.find("#grid .missing")) == shown)
            person.press(ENTER)
        found = labels(pictures / "v.tsv")
        assert {key for key, label in found.items() if label == "-1"} == set(lost)
        person.press(*"1234"[: len(person.cells())], "m")
        decided = len(labels(pictures / "v.tsv"))
        person.press("y")
        assert len(labels(pictures / "v.tsv")) == decided + 1


def verify(person, true):
    """Clicks on the images whose label is wrong and accepts the rest, page by page. true: {key: class}."""
    while person.find("#grid:not([hidden])"):
        name = person.text("#class_name")
        for cell, key, _ in person.cells():
            if true[key] != name:
                person.click(cell)
        person.press(ENTER)


def review(person, true, rows):
    """Keeps or relabels the worst rows as the truth says. Returns their keys."""
    keys = []
    for _ in range(rows):
        key, name = person.text("#facts").split(" · ")[0], person.text("#class_name")
        keys.append(key)
        if true[key] == name:
            person.press("k")
        else:
            person.press("r", *true[key], ENTER)
    return keys


def clean(data, *more):
    """Writes the cleaned list. Returns the class of each row that is in use, by key."""
    run_script("util/export_weights.py", f"--score_file={data}/scores.tsv", f"--list_file={data}/cleaned.tsv", *more)
    return {key: name for key, _, name, action, *_ in lines_of(data / "cleaned.tsv") if action in ("keep", "relabel")}


def test_from_images_to_a_cleaned_list(browser, tmp_path):
    """Nothing is written by the test but a network: only commands, a shell and a person in the browser, who knows the truth."""
    data, network = tmp_path / "data", tmp_path / "network.keras"
    keras.Sequential([
        keras.Input((16, 16, 3)), keras.layers.Conv2D(1, 2, strides=2, kernel_initializer=keras.initializers.Constant(1 / 192)),
        keras.layers.Flatten(),
    ]).save(network)
    run_script("util/make_digits.py", f"--output_dir={data}", "--image_size=16")
    true = truth(tmp_path)
    subprocess.run(f"cut -f1,2 {data}/all.tsv > {data}/images.tsv", shell=True, check=True)
    run_script(
        "util/extract_features.py", f"--image_dir={data}/images", f"--image_list={data}/images.tsv", "--list_columns=key,class",
        f"--class_list={data}/classes.txt", "--split=all", f"--output_dir={data}", f"--keras_model={network}", "--resize=16", "--crop=16",
    )
    find_references(data, data / "classes.txt", 8)
    for split, num, known in (("val", 110, ""), ("train", 150, data / "verified_val.tsv")):
        chosen = [f"--image_feature_list={data}/all.npy", f"--verified={known}", f"--output_file={data}/{split}_list.tsv"]
        run_script("util/choose_rows.py", f"--for={split}", f"--num={num}", *chosen)
        shown = [f"--list={data}/{split}_list.tsv", f"--data_dir={data}", f"--image_dir={data}/images"]
        with Server(*shown, f"--output={data}/verified_{split}.tsv", "--author=ann", "--repeat=0") as server:
            verify(Person(browser, server.url), true)
            assert server.stop().returncode == 0
        joined = [f"--decisions={data}/verified_{split}.tsv", f"--features={data}/all.npy", f"--split={split}", f"--output_dir={data}"]
        run_script("util/join_labels.py", *joined)
        given = dict(line[:2] for line in lines_of(data / f"{split}_list.tsv"))
        keys = (data / f"{split}_keys.txt").read_text().splitlines()
        assert sorted(keys) == sorted(given)
        assert np.load(data / f"{split}.npy")[:, -1].tolist() == [float(given[key] == true[key]) for key in keys]
    flags = {"n_step": 300, "val_interval": 300, "batch_size_sup": None, "batch_size_unsup": None, "dropout_rate": None}
    run_script("train.py", f"--flagfile={ROOT}/recommended.flags", *train_arguments(data, tmp_path, **flags))
    scored = [f"--image_feature_list={data}/all.npy", f"--checkpoint_dir={tmp_path}/run", f"--output_file={data}/scores.tsv"]
    run_script("inference.py", *scored, "--output_format=tsv", "--val_sim_thres=auto")
    with Server(f"--review={data}/scores.tsv", f"--image_dir={data}/images", f"--output={data}/reviewed.tsv", "--author=ann") as server:
        reviewed = review(Person(browser, server.url), true, rows=20)
    scored, decided = clean(data), clean(data, f"--decisions={data}/reviewed.tsv")
    given = dict(line[:2] for line in lines_of(data / "all.tsv"))
    wrong = [{key for key, name in labels.items() if name != true[key]} for labels in (given, scored, decided)]
    print(f"\nwrong labels given, in use after cleaning, and after the review of 20 rows: {[len(found) for found in wrong]}")
    assert not set(reviewed) & wrong[2]
    assert len(wrong[2]) <= len(wrong[1]) < 0.6 * len(wrong[0])
