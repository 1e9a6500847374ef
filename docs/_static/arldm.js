// The sidebar shows where one is: it is scrolled to the current page.
addEventListener('DOMContentLoaded', () => {
  const here = document.querySelector('.sidebar-tree .current-page'), box = document.querySelector('.sidebar-scroll')
  if (here && box) box.scrollTop += here.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight/2
})
