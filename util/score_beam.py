"""Scores any number of TSV shards with Apache Beam: on this machine, or on Flink, Spark or Dataflow.

    pip install -r requirements-beam.txt
    python util/score_beam.py --input='data/all-*.tsv.gz' --checkpoint_dir=runs/digits --output=runs/scored/scores \
        --runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing

Reads and scores with the code of inference.py. Flags that are not its own go to Beam as pipeline options. Writes shards of the table that
`inference.py --output_format=tsv` writes (the order of rows is lost, the key tells them apart), and bad rows to
<output>.rejected-*.tsv: file, offset in its text, reason. A shard that cannot be read, cut-off gzip for example, is such a row too; what
was read of it before is scored.
"""
import gzip
import os
import sys
import zlib

from absl import flags

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from util.lib import class_list, command, metrics, run_folder, score_table, tsv
from util.lib.errors import UserError, warn

flags.DEFINE_string("input", None, "Pattern of the shards (key, class name, feature), plain or .gz.", required=True)
flags.DEFINE_string("output", None, "Beginning of the names of the output shards.", required=True)
flags.DEFINE_string("checkpoint_dir", None, "Folder of the training run; every worker reads it under this path.", required=True)
flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, latest, or the number of a step.")
flags.DEFINE_string("val_sim_thres", "0.1", "Score from which a label counts as correct; auto: the threshold kept with the run.")
flags.DEFINE_enum("score", "cosine", score_table.SCORES, "What is compared with val_sim_thres; the run's where it is not given.")

PART = 8 << 20  # bytes of a shard that one worker reads at a time; a .gz cannot be cut


class Model:
    """What a worker process holds: parser, scorer and how to write a row. Loaded once."""

    def __init__(self, checkpoint_dir, step, score, threshold):
        command.import_tensorflow()
        from util.lib.scorer import restored_scorer

        run = run_folder.load_run(checkpoint_dir)
        shape = run["shape"]
        self.names = class_list.load(os.path.join(checkpoint_dir, "classes.txt"))
        references = run_folder.load_references(checkpoint_dir, shape, len(self.names))
        self.scorer, _ = restored_scorer(checkpoint_dir, step, run, references, compare_classes=True)
        self.parser = tsv.Parser(
            tsv.UNVERIFIED, self.names, width=shape["img_dim"], width_from=f"img_dim of {checkpoint_dir}",
            minimum=-1 if shape["embed_norm"] == "log" else None,
        )
        self.parser.load_kernel()
        self.score, self.threshold = score, threshold

    def lines(self, block):
        """The table's lines, without their ends, for a tsv.Block."""
        scored = score_table.Block(block.keys, block.class_ids, self.scorer.score(block.features, block.class_ids))
        return [line[:-1] for line in score_table.table_lines(scored, self.names, self.score, self.threshold)]


def parts_of(path, size):
    """The parts of a shard that can be read apart: (path, start, end)."""
    if path.endswith(".gz"):
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


def build(pipeline, opt, step, score, threshold):
    """Adds all steps to a pipeline."""
    import apache_beam as beam
    from apache_beam.io import fileio
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.utils import shared

    arguments = (opt.checkpoint_dir, step, score, threshold)
    counter = beam.metrics.Metrics.counter

    class ScorePart(beam.DoFn):
        """(path, start, end) -> (True, line of the table) or (False, line about a row that was rejected)."""

        def __init__(self, handle):
            self._handle = handle

        def setup(self):
            self._model = self._handle.acquire(lambda: Model(*arguments))

        def process(self, part):
            path, start, end = part

            def open_file(path):
                return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)

            place = start
            try:
                for data, offset in read_part(open_file, path, start, end):
                    place = offset + len(data)
                    block = self._model.parser.parse(data)
                    for row in block.rejected:
                        counter("cleannet", "rejected rows").inc()
                        yield False, f"{path}\t{offset + row.offset}\t{row.reason}"
                    if block.keys:
                        counter("cleannet", "rows").inc(len(block.keys))
                        for class_id in block.class_ids.tolist():
                            counter("class", self._model.names[class_id]).inc()
                        for line in self._model.lines(block):
                            yield True, line
            except (OSError, EOFError, ValueError, zlib.error) as error:
                counter("cleannet", "unreadable parts").inc()
                yield False, f"{path}\t{place}\tcannot be read from here on: {' '.join(str(error).split())}"

    scored = (
        pipeline
        | "shards" >> fileio.MatchFiles(opt.input, empty_match_treatment=fileio.EmptyMatchTreatment.DISALLOW)
        | "parts" >> beam.FlatMap(lambda shard: parts_of(shard.path, shard.size_in_bytes))
        | "spread" >> beam.Reshuffle()
        | "score" >> beam.ParDo(ScorePart(shared.Shared()))
    )
    # Two filters, not two tagged outputs: every runner has them.
    for kind, wanted, name in (("scores", True, opt.output), ("rejected", False, f"{opt.output}.rejected")):
        lines = scored | f"pick {kind}" >> beam.Filter(lambda found, wanted: found[0] == wanted, wanted)
        lines |= f"text of {kind}" >> beam.Values()
        lines | f"write {kind}" >> beam.io.WriteToText(name, file_name_suffix=".tsv", skip_if_empty=not wanted)


def main(pipeline_options):
    opt = flags.FLAGS
    try:
        import apache_beam as beam
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("apache_beam is not installed: pip install -r requirements-beam.txt") from None
    run = run_folder.load_run(opt.checkpoint_dir)
    score = opt.score if opt["score"].present else run["settings"]["score"]
    threshold = metrics.parse_threshold(opt.val_sim_thres)
    step = run_folder.pick_step(opt.checkpoint_dir, opt.checkpoint)
    if threshold is None:
        run_folder.check_threshold_is_of(opt.checkpoint_dir, run, score)
        threshold = run_folder.chosen_threshold(opt.checkpoint_dir, run_folder.load_state(opt.checkpoint_dir, step))
    if not FileSystems.match([opt.input])[0].metadata_list:
        raise UserError(f"--input={opt.input}: no file matches; give a pattern, in quotes")
    # Worker processes on this machine import the suite's modules too.
    os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    pipeline = beam.Pipeline(options=PipelineOptions(pipeline_options, save_main_session=False))
    build(pipeline, opt, step, score, threshold)
    result = pipeline.run()
    result.wait_until_finish()
    if not FileSystems.match([f"{opt.output}-*.tsv"])[0].metadata_list:
        raise UserError(f"{opt.output}: the runner says it is done, but wrote no scores; use another --runner, DirectRunner for example")
    try:
        counters = result.metrics().query()["counters"]
    except NotImplementedError:
        counters = []
        warn("this runner keeps no counters")
    for counted in sorted(counters, key=lambda c: (c.key.metric.namespace, c.key.metric.name)):
        if counted.key.metric.namespace in ("cleannet", "class"):
            print(f"{counted.key.metric.namespace}: {counted.key.metric.name}: {counted.result}")
    print(f"{opt.output}-*.tsv: the scores; {opt.output}.rejected-*.tsv: what could not be scored, if anything")


if __name__ == "__main__":
    command.run(main, pass_on=True)
