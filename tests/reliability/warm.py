"""What the server of forks imports before the first one: everything that a training needs."""

import cdb_video.build
import cdb_video.evaluation.report_page
import cdb_video.experiments
import cdb_video.models.from_torchvision  # noqa: F401
