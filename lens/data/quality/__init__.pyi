from .checks import check_text as check_text
from .report import Finding as Finding
from .report import LanguageText as LanguageText
from .report import TextReport as TextReport
