"""What rewards are known to favour or to miss, each with its source: lines of cards."""

from __future__ import annotations

BAG_OF_WORDS = (
    "relations, attributes and the order of words count little: a caption with its words shuffled is often preferred "
    "(Yuksekgonul et al. 2023, arXiv 2210.01936)"
)
READS_TEXT = (
    "words written into the image count as what they name (typographic attacks, Goh et al. 2021, "
    "distill.pub/2021/multimodal-neurons)"
)
ARTEFACTS = (
    "images that were optimised for it keep a high score in spite of artefacts (Hong et al. 2026, arXiv 2601.03468)"
)
LINE_DRAWINGS = "optimising for it leads to stylised line drawings (Black et al. 2024, arXiv 2305.13301, figure 2)"
CARTOONS = (
    "optimising for a LLaVA's answers leads to cartoons and to text that names what was asked for (Black et al. 2024, "
    "arXiv 2305.13301)"
)
SAYS_YES = (
    "vision-language models say yes too often, above all about frequent objects (Li et al. 2023, arXiv 2305.10355)"
)
ORDER = "the order of the two images sways it (Chen et al. 2024, arXiv 2402.04788); `both_orders` shows how often"
MARKS_DIVERGE = (
    "multimodal LLMs agree with people when they compare two answers, far less when they give marks (Chen et al. 2024, "
    "arXiv 2402.04788)"
)
UNLIKE_PHOTOS = (
    "generated images differ from photographs in quality, style and layout, and classifiers of unsafe images get worse "
    "on them (Qu et al. 2024, arXiv 2405.03486)"
)
