"""Scores any number of shards of rows with Apache Beam: on this machine, or on Flink, Spark or Dataflow.

    pip install -r requirements-beam.txt
    python util/score_beam.py --input='data/all-*.tsv.gz' --checkpoint_dir=runs/digits --output=runs/scored/scores \
        --runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing

Reads and scores with the code of inference.py. Other flags go to Beam as pipeline options. Writes shards of the table of
`inference.py --output_format=tsv`; the order of rows is lost, and their keys identify them. Bad rows go to
<output>.rejected-*.tsv: file, offset in its text, reason. Shards may be .csv or .parquet too, on a disk that every worker sees; of
these the number of a line or row stands in place of the offset. A shard that cannot be read to its end, such as gzip that was cut off, is
listed there too; the rows before that point are scored.
"""
import gzip
import os
import sys
import zlib

from absl import flags

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from util.lib import command, csv_rows, rows, score_table, scoring, tsv
from util.lib.errors import UserError, warn

flags.DEFINE_string(
    "input", None, "Pattern of the shards: rows of key, class name and feature, plain or .gz, or .csv or .parquet.", required=True
)
flags.DEFINE_string("output", None, "Prefix of the names of the output shards.", required=True)
flags.DEFINE_string("checkpoint_dir", None, "Folder of the training run, which every worker reads under this path.", required=True)
flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, latest, or the number of a step.")
flags.DEFINE_string(
    "val_sim_thres", "0.1",
    "Score from which a label counts as correct. auto: the threshold that was best on the run's validation rows.",
)
flags.DEFINE_enum("score", "cosine", score_table.SCORES, "What is compared with val_sim_thres. By default the run's.")

WHOLE = (".gz", ".csv", ".parquet")  # shards that are not cut into parts
PART = 8 << 20  # bytes of a shard that a worker reads at a time; a .gz is read as a whole


class Model:
    """What a worker process holds: parser and scorer of a run. Loaded once. arguments: of scoring.open_run."""

    def __init__(self, arguments):
        command.import_tensorflow()
        self.run = scoring.open_run(*arguments)
        self.scorer = self.run.make_scorer(compare_classes=True)
        self.parser = self.run.make_parser()
        self.parser.load_kernel()

    def lines(self, block):
        """The table's lines, without their ends, for a tsv.Block."""
        scored = score_table.ScoredRows(block.keys, block.class_ids, self.scorer.score(block.features, block.class_ids))
        run = self.run
        lines = score_table.table_lines(scored, run.class_names, run.score, run.threshold, run.estimated)
        return [line[:-1] for line in lines]


def parts_of(path, size):
    """The parts of a shard that can be read apart: (path, start, end)."""
    if path.endswith(WHOLE):
        return [(path, 0, None)]
    return [(path, start, min(start + PART, size)) for start in range(0, size, PART)]


def read_part(open_file, path, start, end):
    """Yields (bytes of whole lines, their offset in the text) of a part."""
    with open_file(path) as file:
        if end is not None:
            yield tsv.lines_of_range(file, start, end)
            return
        for data, done in tsv.blocks_of_stream(gzip.GzipFile(fileobj=file)):
            yield data, done - len(data)


def blocks_of(parser, open_file, path, start, end):
    """Yields (tsv.Block, the place of each of its rejected rows in the shard, the place where the block ends) of a part."""
    if csv_rows.is_csv(path) or path.endswith(".parquet"):
        position = 0
        for block in rows.open_source(path, parser, columns=csv_rows.COLUMNS, num_workers=1).blocks():
            position += block.num_lines
            yield block, [row.line for row in block.rejected], position
        return
    for data, offset in read_part(open_file, path, start, end):
        block = parser.parse(data)
        yield block, [offset + row.offset for row in block.rejected], offset + len(data)


def score_part(model, path, start, end, count):
    """Scores a part of a shard.

    Args:
        model: Model. path, start, end: of parts_of. count: function (namespace, name, how many) for Beam's counters.

    Yields:
        (True, line of the table) per row, or (False, line about what was rejected).
    """
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    def open_file(path):
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)

    position = start
    try:
        for block, places, position in blocks_of(model.parser, open_file, path, start, end):  # noqa: B007, the error below has it
            for row, place in zip(block.rejected, places):
                count("cleannet", "rejected rows", 1)
                yield False, f"{path}\t{place}\t{row.reason}"
            if block.keys:
                count("cleannet", "rows", len(block.keys))
                for class_id in block.class_ids.tolist():
                    count("class", model.run.class_names[class_id], 1)
                for line in model.lines(block):
                    yield True, line
    except (OSError, EOFError, ValueError, zlib.error, UserError) as error:
        count("cleannet", "unreadable parts", 1)
        yield False, f"{path}\t{position}\tcannot be read from here on: {' '.join(str(error).split())}"


def build(pipeline, shards, output, arguments):
    """Adds all steps to a pipeline. shards: pattern. output: prefix. arguments: of scoring.open_run."""
    import apache_beam as beam
    from apache_beam.io import fileio
    from apache_beam.utils import shared

    class ScorePart(beam.DoFn):
        """(path, start, end) -> what score_part yields; one Model per process."""

        def __init__(self, handle):
            self._handle = handle

        def setup(self):
            self._model = self._handle.acquire(lambda: Model(arguments))

        def process(self, part):
            def count(namespace, name, number):
                beam.metrics.Metrics.counter(namespace, name).inc(number)

            yield from score_part(self._model, *part, count)

    scored = (
        pipeline
        | "shards" >> fileio.MatchFiles(shards, empty_match_treatment=fileio.EmptyMatchTreatment.DISALLOW)
        | "parts" >> beam.FlatMap(lambda shard: parts_of(shard.path, shard.size_in_bytes))
        | "spread" >> beam.Reshuffle()
        | "score" >> beam.ParDo(ScorePart(shared.Shared()))
    )
    # Two filters, not two tagged outputs: every runner has them.
    for kind, wanted, name in (("scores", True, output), ("rejected", False, f"{output}.rejected")):
        lines = scored | f"pick {kind}" >> beam.Filter(lambda found, wanted: found[0] == wanted, wanted)
        lines |= f"text of {kind}" >> beam.Values()
        lines | f"write {kind}" >> beam.io.WriteToText(name, file_name_suffix=".tsv", skip_if_empty=not wanted)


def print_counters(result):
    """Prints how many rows were scored and rejected, and how many of each class. result: of the pipeline."""
    try:
        counters = result.metrics().query()["counters"]
    except NotImplementedError:
        warn("this runner keeps no counters")
        return
    for counted in sorted(counters, key=lambda c: (c.key.metric.namespace, c.key.metric.name)):
        if counted.key.metric.namespace in ("cleannet", "class"):
            print(f"{counted.key.metric.namespace}: {counted.key.metric.name}: {counted.result}")


def main(pipeline_options):
    opt = flags.FLAGS
    try:
        import apache_beam as beam
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("apache_beam is not installed: pip install -r requirements-beam.txt") from None
    threshold = command.parse_threshold(opt.val_sim_thres)
    run = scoring.open_run(opt.checkpoint_dir, opt.checkpoint, command.given(opt, "score"), threshold)
    inputs = {found.path for found in FileSystems.match([opt.input])[0].metadata_list}
    if not inputs:
        raise UserError(f"--input={opt.input}: no file matches; give a pattern, in quotes")
    earlier = FileSystems.match([f"{opt.output}-*.tsv", f"{opt.output}.rejected-*.tsv"])
    names = {found.path for matched in earlier for found in matched.metadata_list}
    if names & inputs:
        raise UserError(f"--output={opt.output}: its shards would have the names of the input; give another prefix")
    if names:
        raise UserError(f"{opt.output}: has shards of an earlier run, which new ones would mix with; remove them, or name another")
    # Worker processes on this machine import the suite's modules too.
    os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    pipeline = beam.Pipeline(options=PipelineOptions(pipeline_options, save_main_session=False))
    build(pipeline, opt.input, opt.output, (run.folder, str(run.step), run.score, threshold))
    result = pipeline.run()
    result.wait_until_finish()
    if not FileSystems.match([f"{opt.output}-*.tsv"])[0].metadata_list:
        raise UserError(
            f"{opt.output}: the runner says it is done, but wrote no scores; use another --runner, DirectRunner for example"
        )
    print_counters(result)
    print(f"{opt.output}-*.tsv: the scores; {opt.output}.rejected-*.tsv: what could not be scored, if anything")


if __name__ == "__main__":
    command.run(main, pass_on=True)
