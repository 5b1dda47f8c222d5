"""The parts of a detection transformer, and the detector that is made of them.

One image through Sparse DETR, from `forward` to boxes; these eight files are all that it passes here:

    detector.py                 images in: normalise, pad, remember the sizes
    transformer.py              the flow: tokenize, encode, query, decode
    tokenizers/multi_scale.py   backbone maps -> tokens (B, N, C), with positions and a `Pyramid`, their geometry
    heads.py                    a proposal for every token: box, projection, head; the heads of the decoder
    selection/selector.py       a score for every token; the best rho of them stay, within the budget of the call
    encoder/deformable.py       the kept tokens (B, K, C) attend to all tokens and are written back
    queries/topk.py             the Q best encoded tokens become queries: content, position, reference box
    decoder/deformable.py       queries attend to each other and to the tokens; every layer moves its boxes
    detector.py                 the best (query, class) pairs -> `Instances` in pixels of the image

What other models put in their place stands beside them. `training/` holds what only losses need, `classification.py`
what a logit means, `inputs.py` checks of what a model is given; `sparse_detr.recipes` says which parts make a paper.

Shape letters: B images, N tokens of all levels, K kept tokens, Q queries, T true boxes, C channels of a token
(`embed_dim`), L levels, P points, M heads, D = C / M.

Masks: `padding_mask` is True on padding. `valid` and `keep` are True on what counts: `valid` on rows that do not only
fill the batch, `keep` on what is chosen, or may be.

Boxes are cxcywh in [0, 1] of the unpadded image, unless a name says otherwise (`*_logits`, `*_xyxy`, `*_abs`).
"""
