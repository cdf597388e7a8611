"""Shows images in the browser, one class at a time, and writes down which labels a person finds right or wrong.

    python util/verify_images.py --list=to_verify.tsv --image_dir=data/images --output=verified.tsv
    python util/verify_images.py --review=runs/scores.tsv --image_dir=data/images --output=reviewed.tsv

The first asks about the rows of a list. The second goes through a table of scores, worst first, to keep, relabel or drop
rows. Each decision is on disk before the page moves on; the same command goes on where it stopped. Without --list and
--review it imports, exports or writes the decisions there are. docs/verifying.md shows the page and what follows.
"""
import collections
import os
import sys
import time
from typing import NamedTuple

import numpy as np
from absl import flags
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from util.lib import arrays, atomic, class_list, command, decisions, images, json_file, label_formats, paths, score_table, tsv, web
from util.lib.batches import Batches, Change
from util.lib.errors import UserError, counted, warn
from util.lib.run_folder import DATA_FILES
from util.lib.thumbnails import Thumbnails

# Input
flags.DEFINE_string("list", None, "Rows to verify: key, class and, if there, why they were chosen; tab-separated.")
flags.DEFINE_string("review", None, "Table of scores (inference.py --output_format=tsv) whose rows are reviewed, worst first.")
flags.DEFINE_string("image_dir", None, "Folder in which an image is found by its key.")
flags.DEFINE_string("data_dir", None, "Folder with all.npy and ref.npy, from which example images of each class are chosen for --list.")
flags.DEFINE_string("import", None, "Decisions to add to the output: Label Studio's tasks (.json) or a table (.csv).")
# Output
flags.DEFINE_string("output", None, "The decisions file, which grows by a line per decision.", required=True)
flags.DEFINE_string("write", None, "Write the list of decided rows there: key, class, label. The page has a button for it too.")
flags.DEFINE_string("export", None, "Write decisions, and undecided rows of --list, as Label Studio's tasks (.json) or a table (.csv).")
# The page
flags.DEFINE_string("author", None, "Name that decisions get. By default each browser asks once.")
flags.DEFINE_integer("page_size", 50, "Images per page.", lower_bound=1, upper_bound=500)
flags.DEFINE_float(
    "repeat", 0.05, "Share of the rows of --list that are asked twice, to see how well people agree.", lower_bound=0.0, upper_bound=1.0
)
flags.DEFINE_integer("num_examples", 6, "Example images per class, at most.", lower_bound=0, upper_bound=50)
# Run
flags.DEFINE_string("host", "127.0.0.1", "Address to serve. Another one lets other machines in, if they have the printed URL.")
flags.DEFINE_integer("port", 0, "Port to serve; 0: any free one.", lower_bound=0, upper_bound=65535)

LOOKED_FOR = 1000  # images that are looked for before the page is served
HISTORY = 50  # decisions that can be undone after the page was loaded again
ANY = ""  # in a filter

IS_ROW = json_file.is_count
WHO = {"author": json_file.is_text, "window": json_file.is_text}
FILTER = {"class_name": json_file.is_text, "verdict": json_file.is_text, "suggested": json_file.is_text}
CHANGE = {"row": IS_ROW, "label": json_file.one_of(*decisions.LABELS), "right_class": json_file.is_text, "before": json_file.is_count}


class Rows(NamedTuple):
    """The rows that are shown: lists of N, and None for what there is not. order: int [N], row numbers, the first to ask about first."""

    key: list
    class_name: list
    why: list
    order: np.ndarray
    table: score_table.ScoreTable | None = None

    def describe(self, number):
        """What the page shows of a row, a dict."""
        facts = {"row": number, "key": self.key[number], "class_name": self.class_name[number], "why": self.why[number]}
        if self.table:
            score, cosine = (None if np.isnan(x) else float(x) for x in (self.table.score[number], self.table.nearest_cosine[number]))
            facts |= {"score": score, "verdict": self.table.verdict[number]}
            facts |= {"nearest_class": self.table.nearest_class[number], "nearest_cosine": cosine}
        return facts


def read_list(path):
    """Reads the rows to verify. Returns Rows, whose order is by class, the class of the first row first."""
    keys, names, whys, lines = [], [], [], {}
    for number, line in tsv.read_lines(path, "key, class and perhaps why", "reading the list"):
        columns = line.decode().split("\t")
        if len(columns) not in (2, 3) or not columns[0] or not columns[1]:
            found = counted(len(columns), "tab-separated column")
            raise UserError(f"{path}:{number}: {found}, expected a key, its class and perhaps why it was chosen")
        first = lines.setdefault((columns[0], columns[1]), number)
        if first != number:
            raise UserError(f'{path}:{number}: "{columns[0]}" as {columns[1]} is already in line {first}; remove one')
        keys.append(columns[0])
        names.append(columns[1])
        whys.append(columns[2] if len(columns) == 3 else "")
    if not keys:
        raise UserError(f"{path}: lists no rows, expected lines of key, class and perhaps why")
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Rows(keys, names, whys, np.argsort([place[name] for name in names], kind="stable"))


def read_review(path):
    """Reads the rows of a table of scores. Returns Rows in the order of their scores, those without one last."""
    table = score_table.read(path)
    if table.key is None:
        raise UserError(f"{path}: has scores only, a review needs keys and classes; run inference.py with --output_format=tsv")
    order = [n for n in np.argsort(table.score, kind="stable").tolist() if table.class_name[n]]  # bad rows have no class
    if not order:
        raise UserError(f"{path}: none of its rows has a class, so there is nothing to review; score the rows again")
    row, count = collections.Counter((table.key[n], table.class_name[n]) for n in order).most_common(1)[0]
    if count > 1:
        raise UserError(f'{path}: "{row[0]}" as {row[1]} is in it {count} times; score a list without repeated keys')
    return Rows(table.key, table.class_name, [""] * len(table.key), np.array(order, int), table)


def best_rows(rows, num_examples):
    """A function from a class to the keys of its rows with the highest scores, a list of str, which is empty without scores."""
    found = collections.defaultdict(list)
    for n in rows.order[::-1].tolist() if rows.table else ():
        if rows.table.verdict[n] == score_table.CORRECT and len(found[rows.class_name[n]]) < num_examples:
            found[rows.class_name[n]].append(rows.key[n])
    return lambda name: found.get(name, [])


def nearest_rows(data_dir, num_examples):
    """A function from a class to the keys of its rows that are nearest to its references, a list of str.

    One row per reference, those that most rows of the class are near to first: a few wrong rows get references of their own.
    """
    names = class_list.load(os.path.join(data_dir, "classes.txt"))
    array = arrays.FeatureArray(os.path.join(data_dir, "all.npy"), class_names=names, verified=False, grouped=True)
    keys, ids = array.sample_keys(), {name: i for i, name in enumerate(names)}
    references = arrays.load_references(
        os.path.join(data_dir, "ref.npy"), num_classes=len(names), embed_norm="no_norm", img_dim=array.img_dim
    )  # [C, R, D]

    def choose(name):
        if name not in ids:
            return []
        first, end = array.first[ids[name] : ids[name] + 2]
        centres, block = references[ids[name]], max(1, arrays.NUMBERS_PER_BLOCK // array.img_dim)
        counts, rows, best = np.zeros(len(centres), int), np.zeros(len(centres), int), np.full(len(centres), np.inf)
        for start in range(first, end, block):
            features = array.features[start : min(start + block, end)]  # [N, D]
            distances = np.stack([np.square(features - centre).sum(axis=1) for centre in centres])  # [R, N]
            counts += np.bincount(distances.argmin(axis=0), minlength=len(centres))
            nearer = np.flatnonzero(distances.min(axis=1) < best)
            best[nearer], rows[nearer] = distances[nearer].min(axis=1), start + distances[nearer].argmin(axis=1)
        ranked = [rows[r] for r in np.argsort(-counts, kind="stable") if counts[r]]
        return [keys[n] for n in dict.fromkeys(ranked)][:num_examples]

    return choose


class Page:
    """What the page asks for, and the answers.

    Args:
        rows: Rows. batches: Batches of the same rows. thumbnails: Thumbnails. examples: function of a class, which returns keys.
        author: str, or None: each browser has its own. page_size: rows per batch. list_path: what the button writes.
    """

    def __init__(self, *, rows, batches, thumbnails, examples, author, page_size, list_path):
        self.rows, self.batches, self.thumbnails, self.author = rows, batches, thumbnails, author
        self.page_size, self.list_path, self._choose_examples = page_size, list_path, examples
        suggested = rows.table.nearest_class if rows.table else []
        self.class_names = sorted({*rows.class_name, *suggested} - {""})
        self.class_ids = {name: i for i, name in enumerate(self.class_names)}
        self.given = np.array([self.class_ids.get(name, -1) for name in rows.class_name])
        self.suggested = np.array([self.class_ids.get(name, -1) for name in suggested])
        self.verdict = np.array(rows.table.verdict if rows.table else [])
        self._started = f"{time.time_ns():x}"  # part of an image's address: row numbers mean other images in another start
        self._examples = {}  # {class: keys}, of the classes that were shown

    def routes(self):
        """The starlette routes of everything but the static files."""
        actions = {"start": self.start, "batch": self.batch, "decide": self.decide, "renew": self.renew, "leave": self.leave}
        actions |= {"suggestions": self.suggestions, "write": self.write}
        return [
            *(Route(f"/{name}", action, methods=["POST"]) for name, action in actions.items()),
            Route("/image/{row:int}", self.image), Route("/example/{class_id:int}/{number:int}", self.example),
        ]

    async def _read(self, request, schema=WHO):
        """The JSON of a request; its author is a name that a decision may have."""
        body = await web.read_json(request, {**WHO, **schema})
        body["author"] = self.author or " ".join(body["author"].split())
        why = decisions.why_not(decisions.make("key", "class", decisions.UNCLEAR, body["author"]))
        if why:
            raise web.HTTPException(400, why)
        return body

    def _progress(self, author, wanted=None):
        """What the page shows of the progress, among the rows that a filter lets through, a dict, or among all."""
        done, total = self.batches.progress(self._matches(wanted)) if wanted else self.batches.progress()
        alike, twice = self.batches.agreement()
        return {"done": done, "total": total, "alike": alike, "twice": twice, "with_others": self.batches.with_others(author)}

    async def start(self, request):
        """What a page needs once. Its author may be empty, to ask whether there is a fixed one."""
        body = await web.read_json(request, WHO)
        author = self.author or " ".join(body["author"].split())
        last = [self._describe(n, author) for n in self.batches.last_decided(author, HISTORY)]
        return JSONResponse({
            "author": self.author, "review": self.rows.table is not None, "class_names": self.class_names, "history": last,
            "list_path": self.list_path, "start": self._started, "progress": self._progress(author),
        })

    async def batch(self, request):
        """The next rows of a window."""
        body = await self._read(request, {"held": [IS_ROW], "filter": FILTER})
        order = self.rows.order[self._matches(body["filter"])[self.rows.order]]
        groups = None if self.rows.table else self.given
        found = self.batches.take(body["author"], body["window"], self._known(body["held"]), order, self.page_size, groups)
        described = [self._describe(n, body["author"]) for n in found]
        shown = {row["class_name"] for row in described} | {row.get("nearest_class", "") for row in described}
        examples = {name: await run_in_threadpool(self._example_urls, name) for name in shown - {""}}
        return JSONResponse({"rows": described, "examples": examples, "progress": self._progress(body["author"], body["filter"])})

    def _describe(self, number, author):
        return {**self.rows.describe(int(number)), "before": self.batches.count(number, author)}

    def _known(self, numbers):
        """Row numbers of a request. Raises HTTPException for one that there is not."""
        if any(n >= len(self.rows.key) for n in numbers):
            raise web.HTTPException(400, f"a row number beyond {len(self.rows.key)}; reload the page")
        return numbers

    def _matches(self, wanted):
        """bool [N], the rows that a filter of the page lets through."""
        found = np.ones(len(self.rows.key), bool)
        if wanted["class_name"] != ANY:
            found &= self.given == self.class_ids.get(wanted["class_name"], -2)
        if self.rows.table and wanted["suggested"] != ANY:
            found &= self.suggested == self.class_ids.get(wanted["suggested"], -2)
        if self.rows.table and wanted["verdict"] != ANY:
            found &= self.verdict == wanted["verdict"]
        return found

    def _example_urls(self, name):
        if name not in self._examples:
            self._examples[name] = self._choose_examples(name)
        return [f"example/{self.class_ids[name]}/{i}" for i in range(len(self._examples[name]))]

    async def decide(self, request):
        """Writes decisions to disk, then answers."""
        body = await self._read(request, {"decisions": [CHANGE], "filter": json_file.Optional(FILTER)})
        self._known([change["row"] for change in body["decisions"]])
        for change in body["decisions"]:
            if change["right_class"] and (not self.rows.table or change["right_class"] not in self.class_ids):
                raise web.HTTPException(400, "a right class that there is not")
        changes = [Change(*(change[name] for name in Change._fields)) for change in body["decisions"]]
        return self._decided(body, changes)

    def _decided(self, body, changes, **more):
        why = self.batches.decide(body["author"], body["window"], changes)
        if why:
            raise web.HTTPException(409, why)
        return JSONResponse({"progress": self._progress(body["author"], body.get("filter")), **more})

    async def suggestions(self, request):
        """Relabels all rows that a filter lets through, that nobody has decided and whose nearest class is close enough."""
        body = await self._read(request, {"filter": FILTER, "above": json_file.is_number, "count_only": json_file.one_of(True, False)})
        if not self.rows.table:
            raise web.HTTPException(400, "there are no suggestions without --review")
        found = self._matches(body["filter"]) & (self.verdict == score_table.MISLABELED)
        found &= (self.suggested != self.given) & (self.suggested >= 0)
        found &= (self.rows.table.nearest_cosine >= body["above"]) & (self.batches.decided == 0)
        numbers = np.flatnonzero(found).tolist()
        if body["count_only"]:
            return JSONResponse({"count": len(numbers)})
        changes = [Change(n, decisions.MISLABELED, self.rows.table.nearest_class[n], 0) for n in numbers]
        return self._decided(body, changes, rows=numbers)

    async def renew(self, request):
        """A sign of life of a window, which keeps its rows."""
        body = await self._read(request, {"held": [IS_ROW]})
        self.batches.renew(body["author"], body["window"], self._known(body["held"]))
        return JSONResponse({})

    async def leave(self, request):
        """A window closes and gives its rows back."""
        body = await self._read(request)
        self.batches.release(body["author"], body["window"])
        return JSONResponse({})

    async def write(self, request):
        """Writes the list of decided rows."""
        await self._read(request)
        return JSONResponse({"text": write_list(self.list_path, self.batches.log.tally.resolve())})

    async def image(self, request):
        """The image of a row, by its number."""
        number = request.path_params["row"]
        if number >= len(self.rows.key):
            return PlainTextResponse("no such row", 404)
        return await self._picture(self.rows.key[number], large="large" in request.query_params)

    async def example(self, request):
        """An example image of a class that was shown."""
        class_id, number = request.path_params["class_id"], request.path_params["number"]
        keys = self._examples.get(self.class_names[class_id], []) if class_id < len(self.class_names) else []
        return await self._picture(keys[number]) if number < len(keys) else PlainTextResponse("no such example", 404)

    async def _picture(self, key, large=False):
        data, why = await run_in_threadpool(self.thumbnails.get, key, large)
        if data is None:
            return PlainTextResponse(why, 404)
        kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400"})


def write_list(path, resolved):
    """Writes the decided rows (key, class, label), and says so in a line. resolved: {(key, class): decisions.Resolved}."""
    atomic.write_text(path, "".join(f"{key}\t{name}\t{found.label}\n" for (key, name), found in resolved.items()))
    return f"{path}: {decisions.in_words(resolved)}"


def check_images(keys, thumbnails, image_dir):
    """Refuses a folder that has none of the first images; warns where some are missing. keys: list of str."""
    keys = keys[:LOOKED_FOR]
    missing = [key for key in keys if thumbnails.find(key) is None]
    if len(missing) == len(keys):
        none = f'has none of the first {counted(len(keys), "image")}, e.g. "{keys[0]}"'
        raise UserError(f"--image_dir={image_dir}: {none}; name the folder that the keys are below")
    if missing:
        warn(f'{image_dir}: {len(missing)} of the first {len(keys)} images are missing, e.g. "{missing[0]}"; the page shows which')


def check_flags(*, list_path, review, image_dir, data_dir, imported, exported, written, author):
    """Raises UserError for flags that do not go together. Returns whether the page is to be served."""
    if list_path and review:
        raise UserError("--list and --review are two pages; give one of them")
    if not any((list_path, review, imported, exported, written)):
        raise UserError("nothing to do: give --list or --review for the page, or --import, --export or --write")
    if review and (data_dir or imported or exported):
        raise UserError("--review goes without --data_dir, --import and --export; leave them out, or give --list")
    for path in filter(None, (imported, exported)):
        label_formats.check_name(path)
    serves = bool(review or (list_path and not imported and not exported))
    if serves and not image_dir:
        raise UserError("the page needs --image_dir, the folder of the images")
    if author is not None and (why := decisions.why_not(decisions.make("key", "class", decisions.UNCLEAR, author))):
        raise UserError(f"--author: {why}")
    return serves


def add_decisions(path, output):
    """Adds the decisions of a file of another format to those of the output, unless they are there."""
    imported = label_formats.read(path)
    log = decisions.Log(output)
    new = label_formats.not_yet(imported, log.tally)
    log.append(new)
    log.close()
    print(f"{output}: {counted(len(new), 'decision')} imported, {len(imported) - len(new)} were there already")


def open_page(rows, *, image_dir, data_dir, num_examples, output, repeat, **options):
    """Checks what the page needs, then opens the decisions file for it. options: the others of Page. Returns a Page."""
    thumbnails = Thumbnails(image_dir)
    check_images([rows.key[n] for n in rows.order[:LOOKED_FOR]], thumbnails, image_dir)
    examples = nearest_rows(data_dir, num_examples) if data_dir else best_rows(rows, num_examples)
    batches = Batches(list(zip(rows.key, rows.class_name)), decisions.Log(output), 0 if rows.table else repeat)
    return Page(rows=rows, batches=batches, thumbnails=thumbnails, examples=examples, **options)


def say_result(page, output, review):
    """Prints what was decided, and the command that comes next."""
    (done, total), (alike, twice) = page.batches.progress(), page.batches.agreement()
    print(f"{output}: {decisions.in_words(page.batches.log.tally.resolve())}; {done} of {total} answers to this list")
    if twice:
        print(f"{alike} of {counted(twice, 'row')} that were asked twice were decided alike")
    if review:
        print(f"next: python util/export_weights.py --score_file={review} --decisions={output} --list_file=cleaned.tsv")
    else:
        print(f"next: python util/join_labels.py --decisions={output} --features=data/all.npy --split=train --output_dir=data")


def main():
    opt = flags.FLAGS
    imported = opt["import"].value
    serves = check_flags(
        list_path=opt.list, review=opt.review, image_dir=opt.image_dir, data_dir=opt.data_dir, imported=imported,
        exported=opt.export, written=opt.write, author=opt.author,
    )
    list_path = opt.write or f"{os.path.splitext(opt.output)[0]}_list.tsv"  # of the page's button
    outputs = {"--output": opt.output, "--write": opt.write or (list_path if serves else None), "--export": opt.export}
    inputs = {"--list": opt.list, "--review": opt.review, "--import": imported}
    if opt.data_dir:
        inputs |= {f"data file {name}": os.path.join(opt.data_dir, name) for name in DATA_FILES}
    paths.check_distinct(outputs, inputs)
    images.check_outputs(outputs, opt.image_dir)
    rows = read_list(opt.list) if opt.list else read_review(opt.review) if opt.review else None
    atomic.check_writable([opt.write, opt.export])
    if imported:
        add_decisions(imported, opt.output)
    if serves:
        listener = web.listen(opt.host, opt.port)
        page = open_page(
            rows, image_dir=opt.image_dir, data_dir=opt.data_dir, num_examples=opt.num_examples, output=opt.output, repeat=opt.repeat,
            author=opt.author, page_size=opt.page_size, list_path=list_path,
        )
        web.serve(listener, opt.host, page.routes())
        say_result(page, opt.output, opt.review)
    if opt.export or opt.write:
        tally = decisions.load(opt.output) if os.path.exists(opt.output) or not rows else decisions.Tally()
    if opt.export:
        label_formats.write(opt.export, tally, zip(rows.key, rows.class_name) if rows else ())
        print(f"{opt.export}: {decisions.in_words(tally.resolve())}")
    if opt.write:
        print(write_list(opt.write, tally.resolve()))


if __name__ == "__main__":
    command.run(main)
