from dataclasses import dataclass, field
from typing import Any
import torch

@dataclass
class Verdict:
    verdict: str
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

def judge(cell, taken, wanted):
    CLIP=1.0
    b=[n for n in wanted["buffers"] if n not in taken["buffers"] or taken["buffers"][n].dtype!=wanted["buffers"][n].dtype or not torch.equal(taken["buffers"][n],wanted["buffers"][n])]
    extra=[n for n in taken["buffers"] if n not in wanted["buffers"]]
    start=[n for n in wanted["start"] if not torch.equal(wanted["start"][n], taken["before"][n])]
    loss=sum(taken["losses"])/wanted["loss"]-1
    norm=taken["norm"]/wanted["norm"]-1
    worst=[]
    scale=min(1,CLIP/(wanted["norm"]+1e-6))
    tot=0
    for n,g in wanted["gradient"].items():
        m=taken["after"]["exp_avg/"+n]/0.1
        d=(m-g*scale); tot+=float(d.norm())**2
        worst.append((float(d.norm()/(g.norm()*scale+1e-30)), float(g.norm()/wanted["norm"]), n))
    worst.sort(reverse=True)
    up=max(float((taken["after"][n]-wanted["stepped"][n]).abs().max()) for n in wanted["start"])
    kept=[n for n in wanted["kept"] if not torch.equal(taken["after"][n], wanted["kept"][n])]
    return Verdict("?", "", dict(buffers=b[:2],extra=extra[:2],start=start[:2],loss=f"{loss:.1e}",norm=f"{norm:.1e}",grad=f"{tot**.5/(wanted['norm']*scale):.1e}",worst=[(f"{a:.1e}",f"{c:.1e}",n) for a,c,n in worst[:2]],up=f"{up:.1e}",kept=kept[:2],one=taken["one_item"],att=taken["attention"]))
