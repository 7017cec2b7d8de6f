"""Masks say what must not be removed, whatever its score. Each finds anchors; whatever any of them anchors is kept."""

from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.ner import DEFAULT_NER, NerMask
from distill.pruning.masks.pipelines import SpacyMask
from distill.pruning.masks.rules import RULES, rule_anchors
from distill.pruning.masks.user import UserMask, strip_keep_tags

__all__ = ["DEFAULT_NER", "RULES", "Anchor", "NerMask", "SpacyMask", "UserMask", "rule_anchors", "strip_keep_tags"]
