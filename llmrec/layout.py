"""Where each table lies under the root: the one place that knows the names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmrec import storage
from llmrec.config import Config
from llmrec.errors import UserError

EVALUATION, REPORT = "evaluation.json", "report.html"


@dataclass(frozen=True)
class Layout:
    """before_validation: candidates, popularity and quarantine are those of recall from training events alone, which
    fuse asks for. models: where rankers and what trains them lie. trial: what it trains lies aside, under this name; it
    leaves no ranker."""

    root: str
    before_validation: bool = False
    models: str = "models"
    trial: str = ""

    @staticmethod
    def of(config: Config) -> Layout:
        """The layout under `root`.

        Raises:
            UserError: no root is set.
        """
        if not config.root:
            raise UserError(
                "root is not set; give a local path or s3://bucket/prefix (--root or in the configuration file)"
            )
        return Layout(storage.absolute(config.root))

    def _at(self, *parts: str) -> str:
        return storage.join(self.root, *parts)

    @property
    def items(self) -> str:
        return self._at("tables", "items", "items.parquet")

    @property
    def users(self) -> str:
        return self._at("tables", "users")

    @property
    def edges(self) -> str:
        return self._at("tables", "edges", "edges.parquet")

    @property
    def item_augmentations(self) -> str:
        return self._at("tables", "item_augmentations", "item_augmentations.parquet")

    @property
    def user_augmentations(self) -> str:
        return self._at("tables", "user_augmentations")

    def generated(self, kind: str) -> str:
        """All texts that augment has ever written of items or users, by content hash."""
        return self._at("generated", kind)

    @property
    def embeddings(self) -> str:
        return self._at("tables", "embeddings")

    @property
    def feedback(self) -> str:
        """What was taken of published rankings, as a log beside the log."""
        return self._at("tables", "feedback")

    @property
    def histories(self) -> str:
        return self._at("tables", "histories")

    @property
    def pseudonyms(self) -> str:
        """How the users' ids in the tables were made, if not by the user. The key is not among it."""
        return self._at("tables", "pseudonyms.json")

    @property
    def forgotten(self) -> str:
        """Hashes of users whom prepare keeps out."""
        return self._at("privacy", "forgotten.json")

    @property
    def ranker_that_knows(self) -> str:
        """Which ranker was trained on users who were forgotten since."""
        return self._at("privacy", "ranker.json")

    @property
    def targets(self) -> str:
        return self._at("tables", "targets")

    @property
    def popularity(self) -> str:
        return self._recalled("popularity", "popularity.parquet")

    @property
    def queries(self) -> str:
        """What users typed, as vectors."""
        return self._recalled("queries")

    def candidates(self, source: str = "merged") -> str:
        return self._recalled("candidates", source)

    def _recalled(self, *parts: str) -> str:
        return self._aside(*parts) if self.before_validation else self._at("tables", *parts)

    def _aside(self, *parts: str) -> str:
        return storage.join(self.scratch("fuse"), *parts)

    def scratch(self, stage: str = "") -> str:
        """What a stage leaves only while it runs; that of all stages."""
        return self._at("scratch", stage)

    def quarantine(self, stage: str) -> str:
        return self._aside("quarantine", stage) if self.before_validation else self._at("quarantine", stage)

    @property
    def ranker(self) -> str:
        return self._at(self.models, "ranker")

    @property
    def fusion(self) -> str:
        return self._at("models", "fusion", "fusion.json")

    def compressed(self, name: str) -> Layout:
        """The same tables, and smaller rankers made from the one here."""
        return replace(self, models=storage.join("models", "compressed", name))

    @property
    def training(self) -> str:
        return storage.join(self.scratch("search"), self.trial) if self.trial else self._at(self.models, "training")

    @property
    def curves(self) -> str:
        """Loss and validation metric by step of the last training."""
        return storage.join(self.training, "curves.json")

    def search(self, search: str) -> str:
        """What is known of a search over settings: its trials and its best configuration."""
        return self._at("models", "search", search)

    def of_trial(self, search: str, trial: str) -> Layout:
        return replace(self, trial=f"{search}/{trial}")

    @property
    def rankings(self) -> str:
        return self._at("rankings")

    @property
    def reasons(self) -> str:
        """Why the rankings' items are there."""
        return self._at("reasons")

    @property
    def runs(self) -> str:
        return self._at("runs")

    def run(self, run_id: str) -> str:
        return self._at("runs", run_id)

    def ledger(self, run_id: str) -> str:
        return self._at("runs", run_id, "ledger")

    def score_parts(self, run_id: str) -> str:
        """What every candidate's score is made of, if the run kept it."""
        return self._at("runs", run_id, "parts")

    def fusion_of(self, run_id: str) -> str:
        """With which a run was scored; there is none without a fusion."""
        return self._at("runs", run_id, "fusion.json")

    def evaluation_of(self, run_id: str) -> tuple[str, str]:
        """The last evaluation of a run and its page, which stay with it."""
        return self._at("runs", run_id, EVALUATION), self._at("runs", run_id, REPORT)

    def run_summary(self, run_id: str) -> str:
        """Written when every bucket of the run is staged."""
        return self._at("runs", run_id, "run.json")

    @property
    def evaluation(self) -> str:
        return self._at("evaluation", EVALUATION)

    @property
    def profile(self) -> str:
        """What inputs and scores looked like when the rankings were last published."""
        return self._at("drift", "reference.json")

    @property
    def metrics(self) -> str:
        """Of the last pipeline, as Prometheus reads them."""
        return self._at("metrics", "llmrec.prom")

    @property
    def report(self) -> str:
        """The page that shows a run and its metrics."""
        return self._at("evaluation", REPORT)

    def summary(self, stage: str) -> str:
        return self._at("summaries", f"{stage}.json")


def reasons_table(settings: Config, layout: Layout) -> str:
    """Where the reasons lie of the rankings table that the settings name."""
    if settings.explain.output:
        return storage.absolute(settings.explain.output)
    return f"{storage.absolute(settings.score.output)}_reasons" if settings.score.output else layout.reasons
