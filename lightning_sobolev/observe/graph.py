"""Walks through autograd's graph, from a loss to what it was computed from."""

from torch import Tensor

from lightning_sobolev.observe.recorder import Observed


def reached_by(loss: Tensor, observed: list[Observed]) -> list[Observed]:
    """Return those observed calls that a loss was computed from, in their order."""
    wanted = {seen.node: seen for seen in observed if seen.node is not None}
    stack, visited = [loss.grad_fn], {loss.grad_fn}
    found: list[Observed] = []
    while stack and len(found) < len(wanted):
        node = stack.pop()
        if node in wanted:
            found.append(wanted[node])
        new = {child for child, _ in node.next_functions} - visited if node is not None else set()
        visited |= new
        stack += new
    return sorted(found, key=lambda seen: seen.number)


def inputs_but(loss: Tensor, hidden: list[Tensor]) -> dict[str, list[Tensor]]:
    """Return ``backward``'s argument that leaves out the gradients of some leaves."""
    # Every node is visited at every step: no generator, no set of all nodes beforehand.
    own = {id(leaf) for leaf in hidden}
    stack, seen, found = [loss.grad_fn], {loss.grad_fn}, []
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if (variable := getattr(node, "variable", None)) is not None:
            if id(variable) not in own:
                found.append(variable)
            continue
        if "CheckpointFunction" in node.name():  # reentrant: torch refuses it with inputs=
            return {}
        for child, _ in node.next_functions:
            if child not in seen:
                seen.add(child)
                stack.append(child)
    return {"inputs": found} if found else {}  # torch refuses an empty list
