// Sphinx's own scores, except that words on the page of every name come after pages that answer a question.
var Scorer = {
  score: ([page, , , , score, , kind]) => (page === "docs/api" && kind === "text" ? score / 10 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
