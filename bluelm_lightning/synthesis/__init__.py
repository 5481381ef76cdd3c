"""Reasoning synthesis: questions rewritten, sampled many times, and the answers kept that prove right."""

from bluelm_lightning.synthesis.endpoint import EndpointEngine
from bluelm_lightning.synthesis.engines import LocalEngine, TraceEngine
from bluelm_lightning.synthesis.rewrite import EngineRewriter, Rewriter, TemplateRewriter

__all__ = ["EndpointEngine", "EngineRewriter", "LocalEngine", "Rewriter", "TemplateRewriter", "TraceEngine"]
