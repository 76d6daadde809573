"""Look into a language space: spectra, certainty, geometry, alignment, and what to make of them."""

from typing import TYPE_CHECKING

from lens._lazy import lazy

if TYPE_CHECKING:  # for type checkers and editors: the same names, at no cost at run time
    from lens.inspection.band import Band as Band
    from lens.inspection.geometry import Geometry as Geometry
    from lens.inspection.geometry import language_geometry as language_geometry
    from lens.inspection.measuring import inspect_space as inspect_space
    from lens.inspection.page import render_inspection as render_inspection
    from lens.inspection.readings import Reading as Reading
    from lens.inspection.readings import compare_readings as compare_readings
    from lens.inspection.results import Alignment as Alignment
    from lens.inspection.results import Angles as Angles
    from lens.inspection.results import Curve as Curve
    from lens.inspection.results import Inspection as Inspection
    from lens.inspection.results import Separation as Separation
    from lens.inspection.results import SiteInspection as SiteInspection
    from lens.inspection.results import Spectrum as Spectrum

_NAMES = {
    "Alignment": "results",
    "Angles": "results",
    "Band": "band",
    "Curve": "results",
    "Geometry": "geometry",
    "Inspection": "results",
    "Reading": "readings",
    "Separation": "results",
    "SiteInspection": "results",
    "Spectrum": "results",
    "compare_readings": "readings",
    "language_geometry": "geometry",
    "inspect_space": "measuring",
    "render_inspection": "page",
}

__getattr__, __dir__, __all__ = lazy(__name__, _NAMES)
