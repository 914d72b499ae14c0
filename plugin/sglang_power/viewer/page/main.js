showHead();
if (run.kind === "tree") showTree();
else showChain();
